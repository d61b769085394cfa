"""The commands tried wrong: one clear sentence, a non-zero exit, nothing half-written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from clipserve.archive_files import verify_archive_files
from clipserve.encoder_spec import SPEC_FILE, EncoderSpec, read_spec
from clipserve.errors import ExportError, SpecError
from export_scripts import export, tune, verify
from export_scripts.export import export_pair
from export_scripts.formats.torchscript import TorchScript
from export_scripts.packages import archive, triton
from export_scripts.packages.folders import publish_files
from standins.checkpoints import TINY_CLIP, write_clip, write_multilingual

Main = Callable[[Sequence[str]], int]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pair (`clip`, `multilingual`) and its export (`store`)."""
    root = tmp_path_factory.mktemp("made")
    write_clip(root / "clip", TINY_CLIP)
    write_multilingual(root / "multilingual")
    export_pair(str(root / "clip"), str(root / "multilingual"), "cpu", "fp32", root / "store")
    return root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "store", tmp_path / "store"))


def run(main: Main, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and stderr of a command."""
    capsys.readouterr()
    status = main(arguments)
    return status, capsys.readouterr().err


def assert_one_sentence(status: int, message: str, *wanted: str) -> None:
    assert status == 1
    assert message.count("\n") == 1, message
    assert "Traceback" not in message
    for words in wanted:
        assert words in message


def test_folder_that_does_not_exist(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, message = run(export.main, capsys, "--model", "/no/such/folder", "--store", str(tmp_path))
    assert_one_sentence(status, message, "/no/such/folder", "does not exist")
    assert not list(tmp_path.iterdir())


def test_hub_out_of_reach(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, message = run(export.main, capsys, "--model", "clip-ViT-B-16", "--store", str(tmp_path))
    assert_one_sentence(status, message, "clip-ViT-B-16", "MODEL=demo", "local folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_no_cuda(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, message = run(export.main, capsys, "--device", "cuda", "--store", str(tmp_path))
    assert_one_sentence(status, message, "DEVICE=cuda", "DEVICE=cpu")
    assert not list(tmp_path.iterdir())


def test_precision_that_the_device_does_not_take(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, message = run(export.main, capsys, "--precision", "fp16", "--store", str(tmp_path))
    assert_one_sentence(status, message, "PRECISION=fp16", "bf16")


def test_unknown_option_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as ended:
        export.main(["--device", "gpu"])
    assert ended.value.code == 2


def checkpoints_of(made: Path) -> list[str]:
    return ["--model", str(made / "clip"), "--text-model", str(made / "multilingual")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_both_models_are_named(capsys: pytest.CaptureFixture[str], made: Path, tmp_path: Path) -> None:
    """CASES 30 and 6: the text model that was chosen by default as well."""
    assert export.main(["--model", str(made / "clip"), "--store", str(tmp_path)]) == 0
    assert "image encoder of clip, text encoder of clip\n" in capsys.readouterr().out
    assert export.main([*checkpoints_of(made), "--store", str(tmp_path)]) == 0
    assert "image encoder of clip, text encoder of multilingual\n" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [ExportError("no such luck"), KeyboardInterrupt(), OSError(28, "No space")])
def test_a_pair_is_published_together_or_not_at_all(
    wrong: BaseException,
    capsys: pytest.CaptureFixture[str],
    store: Path,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CASES 30: the second encoder of a pair of other weights cannot be made."""
    other = write_clip(made.parent / f"{store.parent.name}-other" / "clip", TINY_CLIP, seed=8)
    before = contents(store)
    make = TorchScript.make
    calls = []

    def second_fails(self: TorchScript, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise wrong
        make(self, *arguments)

    monkeypatch.setattr(TorchScript, "make", second_fails)
    status, message = run(
        export.main, capsys, "--model", str(other), "--text-model", str(made / "multilingual"),
        "--precision", "fp32", "--store", str(store),
    )  # fmt: skip
    assert len(calls) == 2
    assert status == (130 if isinstance(wrong, KeyboardInterrupt) else 1)
    assert message.count("\n") == 1
    assert contents(store) == before


@pytest.mark.parametrize("wrong", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("number", range(8))
def test_publishing_that_stops_is_undone(
    number: int, wrong: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES 30: whichever of the eight moves does not take place, or has just taken place."""
    staging, folder = tmp_path / "staging", tmp_path / "store"
    for place, word in ((staging, "new"), (folder, "old")):
        place.mkdir()
        for name in "abcd":
            (place / name).write_text(f"{word} {name}")
    before = contents(folder)
    replace = Path.replace
    moves = []

    def stops(self: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) == number + 1:
            if wrong is KeyboardInterrupt:
                replace(self, target)
            raise wrong
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stops)
    with pytest.raises(wrong):
        publish_files([staging / name for name in "abcd"], folder)
    assert contents(folder) == before
    monkeypatch.undo()
    shutil.rmtree(staging / "before")
    publish_files([staging / name for name in "abcd"], folder)
    assert contents(folder) == {name: f"new {name}".encode() for name in "abcd"}


COMMANDS: list[tuple[Main, list[str]]] = [
    (export.main, ["--format", "torchscript", "--store"]),
    (export.main, ["--format", "djl", "--store"]),
    (archive.main, ["--store"]),
    (verify.main, ["--store"]),
    (triton.main, ["--output"]),
    (tune.main, ["--seconds", "0.01", "--store"]),
]


@pytest.mark.parametrize(("main", "arguments"), COMMANDS, ids=lambda value: getattr(value, "__module__", ""))
@pytest.mark.parametrize("place", ["afile", "afile/x", "/proc/x"])
def test_a_store_that_cannot_be(
    main: Main,
    arguments: list[str],
    place: str,
    capsys: pytest.CaptureFixture[str],
    made: Path,
    tmp_path: Path,
) -> None:
    """CASES 32: below a file; on a file system that takes nothing, whoever asks."""
    (tmp_path / "afile").write_text("")
    options = [] if main in (archive.main, verify.main) else checkpoints_of(made)
    if main is triton.main:
        options = ["--store", str(made / "store")]
    status, message = run(main, capsys, *options, *arguments, str(tmp_path / place))
    assert_one_sentence(status, message, str(tmp_path / place).removesuffix("/x"))


@contextlib.contextmanager
def file_system(options: str, place: Path) -> Iterator[None]:
    """A small file system of its own."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize(("main", "arguments"), COMMANDS, ids=lambda value: getattr(value, "__module__", ""))
@pytest.mark.parametrize(
    ("options", "words"), [("ro", "Read-only file system"), ("nr_inodes=2", "No space left on device")]
)
def test_a_disk_that_takes_nothing(
    main: Main,
    arguments: list[str],
    options: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
    made: Path,
    tmp_path: Path,
) -> None:
    """CASES 32: one sentence, and nothing half-written."""
    given = [] if main in (archive.main, verify.main) else checkpoints_of(made)
    if main is triton.main:
        given = ["--store", str(made / "store")]
    place = tmp_path / "disk"
    with file_system(options, place):
        status, message = run(main, capsys, *given, *arguments, str(place / "x"))
        assert not [path for path in place.rglob("*") if path.is_file()]
    if main in (archive.main, verify.main):
        words = "holds no encoder"  # they read first, and write into the folder that they read
    assert_one_sentence(status, message, words)


@pytest.mark.parametrize(("main", "arguments"), COMMANDS, ids=lambda value: getattr(value, "__module__", ""))
def test_ctrl_c(
    main: Main,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CASES 32: 130, and one line."""

    def interrupted(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    module = sys.modules[main.__module__]
    for name in ("load_pair", "build_archives", "verify_store", "write_repository"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, interrupted)
    status, message = run(main, capsys, *arguments, str(tmp_path))
    assert (status, message) == (130, f"{main.__module__.rpartition('.')[2]}: interrupted\n")


def test_full_disk(made: Path, tmp_path: Path) -> None:
    """CASES 32, with a limit to the size of a file, as a disk with so much room would set it."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); "
        "from export_scripts import export; sys.exit(export.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *checkpoints_of(made), "--precision", "fp32", "--store", str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert_one_sentence(done.returncode, done.stderr, "export: File too large")
    assert not list(tmp_path.iterdir())


def test_pair_of_different_sizes(capsys: pytest.CaptureFixture[str], made: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    wide = write_clip(tmp_path / "wide", replace(TINY_CLIP, projection_dim=48))
    status, message = run(
        export.main, capsys, "--model", str(wide), "--text-model", str(made / "multilingual"),
        "--store", str(tmp_path / "store"),
    )  # fmt: skip
    assert_one_sentence(status, message, "48-d", "32-d", "no pair")
    assert not (tmp_path / "store").exists()


def test_archive_of_an_empty_store(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, message = run(archive.main, capsys, "--store", str(tmp_path))
    assert_one_sentence(status, message, "no encoder", "make export")


def test_archive_of_a_tampered_encoder(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    path = next(store.glob("*-image-*.pt"))
    content = bytearray(path.read_bytes())
    # A byte of the largest record, which is a weight's.
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    status, message = run(archive.main, capsys, "--store", str(store))
    assert status == 1
    assert "make export" in message
    assert not list(store.glob("*.mar"))


def test_archive_of_a_spec_from_another_version(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    beside = next(store.glob("*-text-*.json"))
    spec = json.loads(beside.read_text())
    beside.write_text(json.dumps({**spec, "schema_version": 99}))
    status, message = run(archive.main, capsys, "--store", str(store))
    assert_one_sentence(status, message, "schema_version 99", "make export")
    assert not list(store.glob("*.mar"))


def test_archive_of_a_stale_spec(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    beside = next(store.glob("*-text-*.json"))
    spec = json.loads(beside.read_text())
    beside.write_text(json.dumps({**spec, "space_id": "0" * 16}))
    status, message = run(archive.main, capsys, "--store", str(store))
    assert_one_sentence(status, message, "not the spec inside", "make export")


def test_archive_of_two_models(
    capsys: pytest.CaptureFixture[str], store: Path, made: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(made / "clip", tmp_path / "other"))
    export_pair(str(other), str(made / "multilingual"), "cpu", "fp32", store)
    status, message = run(archive.main, capsys, "--store", str(store))
    assert_one_sentence(status, message, "clip, other", "make archive MODEL=")
    status, _ = run(archive.main, capsys, "--store", str(store), "--model", "other")
    assert status == 0


def test_archive_of_encoders_of_two_spaces(
    capsys: pytest.CaptureFixture[str], store: Path, made: Path, tmp_path: Path
) -> None:
    other = write_multilingual(tmp_path / "multilingual", seed=99)
    export_pair(str(made / "clip"), str(other), "cpu", "bf16", store)
    status, message = run(archive.main, capsys, "--store", str(store))
    assert_one_sentence(status, message, "not of one embedding space", "make export")
    assert not list(store.glob("*.mar"))


def test_an_archive_holds_what_it_lists_and_nothing_else(store: Path, tmp_path: Path) -> None:
    """ATTACKS B2: a file that was added, to be chosen before the one that was packaged, is found."""
    assert archive.main(["--store", str(store)]) == 0
    for name in ("clip_image", "clip_similarity"):
        folder = tmp_path / name
        with zipfile.ZipFile(store / f"{name}.mar") as packed:
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


def test_triton_of_two_models(
    capsys: pytest.CaptureFixture[str], store: Path, made: Path, tmp_path: Path
) -> None:
    """CASES 14."""
    other = Path(shutil.copytree(made / "clip", tmp_path / "other"))
    export_pair(str(other), str(made / "multilingual"), "cpu", "fp32", store)
    options = ["--store", str(store), "--output", str(tmp_path / "triton")]
    status, message = run(triton.main, capsys, *options)
    assert_one_sentence(status, message, "holds 2 models (clip, other); say which: 'make triton MODEL=clip'")
    assert run(triton.main, capsys, *options, "--model", "other")[0] == 0


def test_archives_are_reproducible(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    archives = []
    for _ in range(2):
        assert run(archive.main, capsys, "--store", str(store))[0] == 0
        archives.append({path.name: path.read_bytes() for path in store.glob("*.mar")})
    assert set(archives[0]) == {"clip_image.mar", "clip_text.mar", "clip_similarity.mar"}
    assert archives[0] == archives[1]


def test_verify_measures_what_export_certified(
    capsys: pytest.CaptureFixture[str], store: Path, made: Path
) -> None:
    assert verify.main(
        ["--store", str(store), "--model", str(made / "clip"), "--text-model", str(made / "multilingual")]
    ) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["artefact", "format", "precision", "MB", "max-abs", "min", "cosine", "s"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["clip-image-cpu-fp32.pt", "torchscript", "fp32"], ["clip-text-cpu-fp32.pt", "torchscript", "fp32"],
    ]  # fmt: skip


@pytest.mark.full
def test_every_kind_in_one_table(capsys: pytest.CaptureFixture[str], made: Path, tmp_path: Path) -> None:
    """Two formats exported by the command, and what is changed in a folder for DJL."""
    store = tmp_path / "store"
    checkpoints = ["--model", str(made / "clip"), "--text-model", str(made / "multilingual")]
    for format in ("djl", "onnx"):
        status, message = run(
            export.main,
            capsys,
            *checkpoints,
            "--precision",
            "fp32",
            "--format",
            format,
            "--store",
            str(store),
        )
        assert (status, message) == (0, "")
    assert verify.main(["--store", str(store), *checkpoints]) == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [
        ["clip-image-cpu-fp32.onnx", "onnx", "fp32"],
        ["clip-image-cpu-fp32.pt", "torchscript", "fp32"],
        ["clip-text-cpu-fp32.onnx", "onnx", "fp32"],
        ["clip-text-cpu-fp32.pt", "torchscript", "fp32"],
        ["djl/clip-image-cpu-fp32/clip-image-cpu-fp32.pt", "djl", "fp32"],
        ["djl/clip-text-cpu-fp32/clip-text-cpu-fp32.pt", "djl", "fp32"],
    ]
    beside = store / "djl" / "clip-text-cpu-fp32" / "tokenizer.json"
    beside.write_text(beside.read_text() + " ")
    status, message = run(verify.main, capsys, "--store", str(store), *checkpoints)
    assert_one_sentence(status, message, "tokenizer.json", "not what is inside", "FORMAT=djl")
    shutil.rmtree(store / "djl")
    path = store / "clip-image-cpu-fp32.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in a weight
    path.write_bytes(content)
    status, message = run(verify.main, capsys, "--store", str(store), *checkpoints)
    assert_one_sentence(status, message, "fp32.onnx: changed since its export", "make export")


def test_verify_against_another_checkpoint(
    capsys: pytest.CaptureFixture[str], store: Path, made: Path, tmp_path: Path
) -> None:
    other = write_clip(tmp_path / "clip", TINY_CLIP, seed=5)
    status, message = run(
        verify.main, capsys, "--store", str(store), "--model", str(other),
        "--text-model", str(made / "multilingual"),
    )  # fmt: skip
    assert_one_sentence(status, message, "checkpoint with weights", "make export")


def test_exported_spec_stands_inside_and_beside(store: Path) -> None:
    paths = sorted(store.glob("*.pt"))
    assert len(paths) == 2
    for path in paths:
        beside = path.with_suffix(".json")
        assert EncoderSpec.from_json(beside.read_text(), SPEC_FILE) == read_spec(path)
