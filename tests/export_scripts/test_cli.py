"""The commands tried wrong: one clear sentence, a non-zero exit, nothing half-written."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from clipserve.encoder_spec import SPEC_FILE, EncoderSpec, read_spec
from clipserve.errors import ExportError
from export_scripts import export, tune, verify
from export_scripts.formats.torchscript import TorchScript
from export_scripts.packages import archive, triton
from standins.checkpoints import TINY_CLIP, write_clip
from tests.export_scripts.commands import Main, assert_one_sentence, checkpoints_of, contents, run


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
    status, message = run(
        export.main, capsys, "--precision", "fp16", "--format", "aoti", "--store", str(tmp_path)
    )
    assert_one_sentence(status, message, "PRECISION=fp16", "bf16")


def test_unknown_option_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as ended:
        export.main(["--device", "gpu"])
    assert ended.value.code == 2


def test_both_models_are_named(capsys: pytest.CaptureFixture[str], made: Path, tmp_path: Path) -> None:
    """CASES 30 and 6: the text model that was chosen by default as well."""
    assert export.main(["--model", str(made / "clip"), "--store", str(tmp_path)]) == 0
    assert "image encoder of clip, text encoder of clip\n" in capsys.readouterr().out
    assert export.main([*checkpoints_of(made), "--store", str(tmp_path)]) == 0
    assert "image encoder of clip, text encoder of multilingual\n" in capsys.readouterr().out


def test_auto_says_what_it_timed_and_keeps_one(
    capsys: pytest.CaptureFixture[str], made: Path, tmp_path: Path
) -> None:
    assert export.main([*checkpoints_of(made), "--precision", "auto", "--store", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    times = r"\w+ [\d.]+ and [\d.]+ ms"
    kept = re.findall(rf"^      batches of 1 and 8: (?:{times}(?:, |; ))+(\w+) is kept$", said, re.MULTILINE)
    assert len(kept) == 2
    names = [f"clip-{modality}-cpu-{name}" for modality, name in zip(("image", "text"), kept, strict=True)]
    assert sorted(contents(tmp_path)) == [f"{name}{suffix}" for name in names for suffix in (".json", ".pt")]


@pytest.mark.parametrize("wrong", [ExportError("no such luck"), KeyboardInterrupt(), OSError(28, "No space")])
def test_a_pair_is_published_together_or_not_at_all(
    wrong: BaseException,
    capsys: pytest.CaptureFixture[str],
    own_store: Path,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CASES 30: the second encoder of a pair of other weights cannot be made."""
    other = write_clip(made.parent / f"{own_store.parent.name}-other" / "clip", TINY_CLIP, seed=8)
    before = contents(own_store)
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
        "--precision", "fp32", "--store", str(own_store),
    )  # fmt: skip
    assert len(calls) == 2
    assert status == (130 if isinstance(wrong, KeyboardInterrupt) else 1)
    assert message.count("\n") == 1
    assert contents(own_store) == before


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


def test_exported_spec_stands_inside_and_beside(own_store: Path) -> None:
    paths = sorted(own_store.glob("*.pt"))
    assert len(paths) == 2
    for path in paths:
        beside = path.with_suffix(".json")
        assert EncoderSpec.from_json(beside.read_text(), SPEC_FILE) == read_spec(path)
