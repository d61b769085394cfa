"""The folders for DJL: what is in them, and that nothing half-written or changed is published."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from clipserve.encoder_spec import EncoderSpec, read_extra_file, read_spec
from clipserve.errors import SpecError
from export_scripts.packages import djl
from export_scripts.packages.djl import djl_encoders, write_djl


@pytest.mark.parametrize(
    ("modality", "extra"), [("image", set()), ("text", {"tokenizer.json"})], ids=["image", "text"]
)
def test_folder_and_zip(modality: str, extra: set[str], store: Path, tmp_path: Path) -> None:
    encoder = store / f"clip-{modality}-cpu-fp32.pt"
    folder = write_djl(encoder, tmp_path)
    assert folder == tmp_path / "djl" / encoder.stem
    # DJL looks for a .pt of the folder's name.
    names = {encoder.name, "serving.properties", "spec.json"} | extra
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / encoder.name).read_bytes() == encoder.read_bytes()
    assert EncoderSpec.from_json((folder / "spec.json").read_text("utf-8"), "spec.json") == read_spec(encoder)
    for name in extra:
        assert (folder / name).read_bytes() == read_extra_file(encoder, name)
    assert (folder / "serving.properties").read_text().splitlines() == [
        "engine=PyTorch", f"option.modelName={encoder.stem}", "option.mapLocation=true",
    ]  # fmt: skip
    with zipfile.ZipFile(folder.with_name(f"{encoder.stem}.zip")) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            path.name: path.read_bytes() for path in folder.iterdir()
        }
    assert sorted(path.name for path in (tmp_path / "djl").iterdir()) == [encoder.stem, f"{encoder.stem}.zip"]


def test_equal_encoders_give_equal_zips(image_path: Path, tmp_path: Path) -> None:
    zips = []
    for name in ("a", "b"):
        write_djl(image_path, tmp_path / name)
        zips.append((tmp_path / name / "djl" / f"{image_path.stem}.zip").read_bytes())
    assert zips[0] == zips[1]


def test_written_again_it_replaces(image_path: Path, tmp_path: Path) -> None:
    folder = write_djl(image_path, tmp_path)
    (folder / "left over").touch()
    write_djl(image_path, tmp_path)
    assert not (folder / "left over").exists()
    assert djl_encoders(tmp_path) == [folder / image_path.name]


def test_encoders_of_a_store(image_path: Path, text_path: Path, tmp_path: Path) -> None:
    assert djl_encoders(tmp_path) == []
    folders = [write_djl(path, tmp_path) for path in (text_path, image_path)]
    # What does not come from write_djl is not its encoder.
    (tmp_path / "djl" / "other").mkdir()
    (tmp_path / "djl" / "other" / "model.pt").touch()
    assert djl_encoders(tmp_path) == sorted(folder / f"{folder.name}.pt" for folder in folders)


def test_model_name_is_escaped_for_java(
    monkeypatch: pytest.MonkeyPatch, image_path: Path, tmp_path: Path
) -> None:
    spec = replace(read_spec(image_path), model_id="kép\\🐕")
    monkeypatch.setattr(djl, "read_spec", lambda path: spec)
    folder = write_djl(image_path, tmp_path)
    assert folder.name == "kép\\🐕-image-cpu-fp32"
    properties = (folder / "serving.properties").read_bytes()
    assert b"option.modelName=k\\u00e9p\\u005c\\ud83d\\udc15-image-cpu-fp32\n" in properties


def test_other_formats_are_refused(monkeypatch: pytest.MonkeyPatch, image_path: Path, tmp_path: Path) -> None:
    spec = replace(read_spec(image_path), format="aoti")
    monkeypatch.setattr(djl, "read_spec", lambda path: spec)
    with pytest.raises(SpecError, match="an encoder as aoti takes it, here torchscript is wanted"):
        write_djl(image_path, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_encoder(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"PK")
    with pytest.raises(SpecError, match="not a readable encoder"):
        write_djl(tmp_path / "broken.pt", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.pt"]


def test_nothing_half_written(monkeypatch: pytest.MonkeyPatch, image_path: Path, tmp_path: Path) -> None:
    folder = write_djl(image_path, tmp_path)
    before = folder.stat().st_ino

    def full(folder: Path, archive: Path) -> None:
        archive.write_bytes(b"PK")
        raise OSError("No space left on device")

    monkeypatch.setattr(djl, "_zip", full)
    with pytest.raises(OSError, match="No space left"):
        write_djl(image_path, tmp_path)
    assert folder.stat().st_ino == before
    assert len(list((tmp_path / "djl").iterdir())) == 2
