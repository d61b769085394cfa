"""ONNX files: names, sizes, and what they cannot be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from clipserve.encoder_spec import SPEC_FILE, TOKENIZER_FILE
from clipserve.errors import ExportError, SpecError
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.formats import onnx
from export_scripts.publish import check_device, export_encoder
from tests.conftest import ExportedAs
from tests.export_scripts.exports import read_any_spec


def test_onnx_is_one_file_with_names_and_dynamic_sizes(exported_as: ExportedAs) -> None:
    import onnxruntime

    path = exported_as("multilingual", "onnx", "fp32")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [o.name for o in session.get_outputs()] == ["embeddings"]
    for node in session.get_inputs():
        assert all(isinstance(size, str) for size in node.shape), node.shape
    assert set(session.get_modelmeta().custom_metadata_map) == {SPEC_FILE, TOKENIZER_FILE}


def test_onnx_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"FORMAT=onnx: no package 'onnxruntime' here; 'make export FORMAT"):
        check_device("cpu", "fp32", "onnx")


def test_onnx_of_more_than_a_file_holds(
    pair: CheckpointPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "ONNX_MOST_BYTES", 1000)
    with pytest.raises(ExportError, match=r"text encoder: FORMAT=onnx: .* GB of weights, one ONNX file"):
        export_encoder(pair, "text", "cpu", "fp32", tmp_path, file_format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_damaged_onnx(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(SpecError, match=r"x\.onnx: not a readable encoder"):
        read_any_spec(path)
