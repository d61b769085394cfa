"""`make verify` tried right and wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from export_scripts import export, verify
from standins.checkpoints import TINY_CLIP, write_clip
from tests.export_scripts.commands import assert_one_sentence, run


def test_verify_measures_what_export_certified(
    capsys: pytest.CaptureFixture[str], own_store: Path, made: Path
) -> None:
    assert verify.main(
        ["--store", str(own_store), "--model", str(made / "clip"), "--text-model", str(made / "multilingual")]
    ) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["artefact", "format", "precision", "MB", "max-abs", "min", "cosine", "s"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["clip-image-cpu-fp32.pt", "torchscript", "fp32"], ["clip-text-cpu-fp32.pt", "torchscript", "fp32"],
    ]  # fmt: skip


@pytest.mark.full
def test_every_kind_in_one_table(capsys: pytest.CaptureFixture[str], made: Path, tmp_path: Path) -> None:
    """Two formats exported by the command, and what is changed in a folder for DJL."""
    own_store = tmp_path / "store"
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
            str(own_store),
        )
        assert (status, message) == (0, "")
    assert verify.main(["--store", str(own_store), *checkpoints]) == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [
        ["clip-image-cpu-fp32.onnx", "onnx", "fp32"],
        ["clip-image-cpu-fp32.pt", "torchscript", "fp32"],
        ["clip-text-cpu-fp32.onnx", "onnx", "fp32"],
        ["clip-text-cpu-fp32.pt", "torchscript", "fp32"],
        ["djl/clip-image-cpu-fp32/clip-image-cpu-fp32.pt", "djl", "fp32"],
        ["djl/clip-text-cpu-fp32/clip-text-cpu-fp32.pt", "djl", "fp32"],
    ]
    beside = own_store / "djl" / "clip-text-cpu-fp32" / "tokenizer.json"
    beside.write_text(beside.read_text() + " ")
    status, message = run(verify.main, capsys, "--store", str(own_store), *checkpoints)
    assert_one_sentence(status, message, "tokenizer.json", "not what is inside", "FORMAT=djl")
    shutil.rmtree(own_store / "djl")
    path = own_store / "clip-image-cpu-fp32.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in a weight
    path.write_bytes(content)
    status, message = run(verify.main, capsys, "--store", str(own_store), *checkpoints)
    assert_one_sentence(status, message, "fp32.onnx: changed since its export", "make export")


def test_verify_against_another_checkpoint(
    capsys: pytest.CaptureFixture[str], own_store: Path, made: Path, tmp_path: Path
) -> None:
    other = write_clip(tmp_path / "clip", TINY_CLIP, seed=5)
    status, message = run(
        verify.main, capsys, "--store", str(own_store), "--model", str(other),
        "--text-model", str(made / "multilingual"),
    )  # fmt: skip
    assert_one_sentence(status, message, "checkpoint with weights", "make export")
