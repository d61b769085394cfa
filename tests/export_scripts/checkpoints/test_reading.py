"""Damaged and hostile files, of every text layout."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipserve.errors import ExportError
from export_scripts.checkpoints.loading import load_text_checkpoint
from tests.export_scripts.checkpoints.edits import (
    Change,
    Vary,
    drop,
    edit_tensors,
    remove,
    text_refusal,
    write,
)


@pytest.mark.parametrize(
    ("fixture", "change"),
    [
        ("multilingual_folder", lambda folder: shutil.rmtree(folder / "2_Dense")),
        ("multilingual_folder", write("model.safetensors", b"x" * 999)),
        ("m_clip_bert_folder", write("model.safetensors", b"x" * 999)),
        ("m_clip_bert_folder", remove("model.safetensors")),
        ("m_clip_xlm_roberta_folder", write("model.safetensors", b"x" * 999)),
        ("m_clip_xlm_roberta_folder", write("config.json", '{"model_type": "M-CLIP"}')),
        ("m_clip_xlm_roberta_folder", lambda folder: torch.save([1, 2], folder / "pytorch_model.bin")),
        ("m_clip_xlm_roberta_folder", write("tokenizer.json", "{")),
    ],
    ids=["no dense", "damaged", "bert damaged", "bert no weights", "xlm-r damaged", "xlm-r no base",
         "xlm-r list",
         "xlm-r tokenizer"],
)  # fmt: skip
def test_damaged_text_checkpoints_are_refused_in_our_words(
    fixture: str, change: Change, vary: Vary, request: pytest.FixtureRequest
) -> None:
    assert text_refusal(vary(request.getfixturevalue(fixture), change))


@pytest.mark.parametrize(
    ("fixture", "prefix"),
    [
        ("multilingual_folder", "transformer.layer.0.ffn"),
        ("multilingual_folder", "embeddings.LayerNorm"),
        ("m_clip_bert_folder", "encoder.layer.1.output"),
    ],
)
def test_missing_text_weights_are_refused(
    fixture: str, prefix: str, vary: Vary, request: pytest.FixtureRequest
) -> None:
    folder = vary(request.getfixturevalue(fixture), edit_tensors("model.safetensors", drop(prefix)))
    assert prefix in text_refusal(folder)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path):
        self.command = f"touch {mark}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize(
    ("fixture", "name"),
    [
        ("m_clip_xlm_roberta_folder", "pytorch_model.bin"),
        pytest.param("multilingual_folder", "pytorch_model.bin"),
        pytest.param("multilingual_folder", "2_Dense/pytorch_model.bin"),
        pytest.param("m_clip_bert_folder", "pytorch_model.bin"),
    ],
)
def test_hostile_tensor_files_are_refused(
    fixture: str, name: str, vary: Vary, mark: Path, request: pytest.FixtureRequest
) -> None:
    def change(folder: Path) -> None:
        if name == "pytorch_model.bin":
            (folder / "model.safetensors").unlink(missing_ok=True)
        torch.save({"linear.weight": Hostile(mark)}, folder / name)

    folder = vary(request.getfixturevalue(fixture), change)
    assert text_refusal(folder)


@pytest.mark.parametrize(
    "fixture", ["m_clip_xlm_roberta_folder", "multilingual_folder", "m_clip_bert_folder"]
)
def test_hostile_tensor_files_are_not_run(
    fixture: str, vary: Vary, mark: Path, request: pytest.FixtureRequest
) -> None:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink(missing_ok=True)
        for path in {*folder.rglob("pytorch_model.bin"), folder / "pytorch_model.bin"}:
            torch.save({"linear.weight": Hostile(mark)}, path)

    folder = vary(request.getfixturevalue(fixture), change)
    with pytest.raises((ExportError, pickle.UnpicklingError)):
        load_text_checkpoint(folder, "x")
    assert not mark.exists()


@pytest.mark.parametrize("fixture", ["multilingual_folder", "m_clip_bert_folder", "siglip_folder"])
def test_where_weights_lie_in_their_file_changes_no_vector(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its header has any multiple of 8 bytes, and products of small batches saw the difference."""
    found = set()
    for padding in range(0, 64, 8):
        folder = Path(shutil.copytree(request.getfixturevalue(fixture), tmp_path / f"{padding}" / "model"))
        (path,) = folder.rglob("model.safetensors")
        save_file(load_file(path), path, metadata={"format": "pt", "padding": "x" * padding})
        checkpoint = load_text_checkpoint(folder, "x")
        found |= {checkpoint.reference_encode([text]).tobytes() for text in ("a dog", "két kutya a hóban")}
    assert len(found) == 2
