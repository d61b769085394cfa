"""TorchServe archives: what goes in, and what is refused in one sentence."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from clipserve.archive_files import verify_archive_files
from clipserve.encoder_spec import Format, description_path
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import SpecError
from export_scripts.export import export_pair
from export_scripts.packages import archive
from export_scripts.packages.archive import build_archives
from standins.checkpoints import write_multilingual
from tests.conftest import ExportedAs
from tests.export_scripts.commands import assert_one_sentence, run


def test_archive_of_an_empty_store(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, message = run(archive.main, capsys, "--store", str(tmp_path))
    assert_one_sentence(status, message, "no encoder", "make export")


def test_archive_of_a_tampered_encoder(capsys: pytest.CaptureFixture[str], own_store: Path) -> None:
    path = next(own_store.glob("*-image-*.pt"))
    content = bytearray(path.read_bytes())
    # A byte of the largest record, which is a weight's.
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    status, message = run(archive.main, capsys, "--store", str(own_store))
    assert status == 1
    assert "make export" in message
    assert not list(own_store.glob("*.mar"))


def test_archive_of_a_spec_from_another_version(capsys: pytest.CaptureFixture[str], own_store: Path) -> None:
    beside = next(own_store.glob("*-text-*.json"))
    spec = json.loads(beside.read_text())
    beside.write_text(json.dumps({**spec, "schema_version": 99}))
    status, message = run(archive.main, capsys, "--store", str(own_store))
    assert_one_sentence(status, message, "schema_version 99", "make export")
    assert not list(own_store.glob("*.mar"))


def test_archive_of_a_stale_spec(capsys: pytest.CaptureFixture[str], own_store: Path) -> None:
    beside = next(own_store.glob("*-text-*.json"))
    spec = json.loads(beside.read_text())
    beside.write_text(json.dumps({**spec, "space_id": "0" * 16}))
    status, message = run(archive.main, capsys, "--store", str(own_store))
    assert_one_sentence(status, message, "not the spec inside", "make export")


def test_archive_of_two_models(
    capsys: pytest.CaptureFixture[str], own_store: Path, made: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(made / "clip", tmp_path / "other"))
    export_pair(str(other), str(made / "multilingual"), "cpu", "fp32", own_store)
    status, message = run(archive.main, capsys, "--store", str(own_store))
    assert_one_sentence(status, message, "clip, other", "make archive MODEL=")
    status, _ = run(archive.main, capsys, "--store", str(own_store), "--model", "other")
    assert status == 0


def test_archive_of_encoders_of_two_spaces(
    capsys: pytest.CaptureFixture[str], own_store: Path, made: Path, tmp_path: Path
) -> None:
    other = write_multilingual(tmp_path / "multilingual", seed=99)
    export_pair(str(made / "clip"), str(other), "cpu", "bf16", own_store)
    status, message = run(archive.main, capsys, "--store", str(own_store))
    assert_one_sentence(status, message, "not of one embedding space", "make export")
    assert not list(own_store.glob("*.mar"))


def test_an_archive_holds_what_it_lists_and_nothing_else(own_store: Path, tmp_path: Path) -> None:
    """ATTACKS B2: a file that was added, to be chosen before the one that was packaged, is found."""
    assert archive.main(["--store", str(own_store)]) == 0
    for name in ("clip_image", "clip_similarity"):
        folder = tmp_path / name
        with zipfile.ZipFile(own_store / f"{name}.mar") as packed:
            packed.extractall(folder)
        verify_archive_files(folder)
        # As an import leaves them.
        (folder / "clipserve" / "__pycache__").mkdir()
        (folder / "clipserve" / "__pycache__" / "worker.cpython-311.pyc").write_bytes(b"")
        verify_archive_files(folder)
        listed = next(folder.glob("*-image-*.pt"))
        for added in ("a-image-cpu-bf16.pt", "clipserve/sitecustomize.py", f"{listed.stem}.pt2"):
            shutil.copyfile(listed, folder / added)
            with pytest.raises(SpecError, match=f"{added} was added after the archive was packaged"):
                verify_archive_files(folder)
            (folder / added).unlink()
        verify_archive_files(folder)


def test_archives_are_reproducible(capsys: pytest.CaptureFixture[str], own_store: Path) -> None:
    archives = []
    for _ in range(2):
        assert run(archive.main, capsys, "--store", str(own_store))[0] == 0
        archives.append({path.name: path.read_bytes() for path in own_store.glob("*.mar")})
    assert set(archives[0]) == {f"{name}.mar" for name in ENDPOINTS}
    assert archives[0] == archives[1]


@pytest.mark.parametrize(
    "compiled", [("multilingual",), pytest.param(("image", "multilingual"), marks=pytest.mark.full)]
)
def test_archive_holds_both_kinds(compiled: tuple[str, ...], exported_as: ExportedAs, tmp_path: Path) -> None:
    """All that workers run, and no other format."""
    stems = {"image": "clip-image-cpu-fp32", "multilingual": "clip-text-cpu-fp32"}
    formats: list[tuple[str, Format]] = [
        *((name, format) for name in stems for format in ("torchscript", "onnx")),
        *((name, "aoti") for name in compiled),
    ]
    for path in (exported_as(*of, "fp32") for of in formats):
        for file in (path, description_path(path)):
            shutil.copyfile(file, tmp_path / file.name)
    build_archives(tmp_path, None, None)
    with zipfile.ZipFile(tmp_path / "clip_similarity.mar") as archive:
        found = {name for name in archive.namelist() if name.startswith("clip-")}
    assert found == {f"{stem}.pt" for stem in stems.values()} | {f"{stems[name]}.pt2" for name in compiled}
    # A description of another format does not do.
    description_path(tmp_path / f"{stems[compiled[0]]}.pt2").unlink()
    with pytest.raises(SpecError, match=r"pt2\.json: missing"):
        build_archives(tmp_path, None, None)
