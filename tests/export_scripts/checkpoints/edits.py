"""Checkpoints with something changed in them, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clipserve.errors import ExportError
from clipserve.tokens import Tokenizer
from export_scripts.checkpoints.loading import load_image_checkpoint, load_pair, load_text_checkpoint
from export_scripts.checkpoints.pair import TextCheckpoint

Change = Callable[[Path], object]


Vary = Callable[[Path, Change], Path]


def edit_json(name: str, **fields: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def write(name: str, content: bytes | str) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def remove(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def edit_tensors(name: str, edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        edit(tensors)
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return change


def drop(prefix: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        names = [name for name in tensors if name.startswith(prefix)]
        assert names
        for name in names:
            del tensors[name]

    return edit


def dense_of(weight: torch.Tensor) -> Change:
    return lambda folder: torch.save({"linear.weight": weight}, folder / "2_Dense" / "pytorch_model.bin")


def text_refusal(folder: Path) -> str:
    with pytest.raises(ExportError) as caught:
        load_text_checkpoint(folder, "x")
    return str(caught.value)


def image_refusal(folder: Path) -> str:
    with pytest.raises(ExportError) as caught:
        load_image_checkpoint(folder, "x")
    return str(caught.value)


def pair_refusal(model: str, text_model: str | None = None) -> str:
    with pytest.raises(ExportError) as caught:
        load_pair(model, text_model)
    return str(caught.value)


def agrees(folder: Path) -> TextCheckpoint:
    """The text checkpoint of a folder, whose built encoder was compared with its original on sentences."""
    text = load_text_checkpoint(folder, "x")
    tokenizer = Tokenizer(text.tokenizer, text.preprocessing)
    sentences = ["two dogs", "犬 " * 300, "Été", "", "x" * 900]
    inputs = tokenizer.pad([tokenizer.tokenize(sentence).ids for sentence in sentences])
    with torch.inference_mode():
        ours = text.build(False).eval()(*(torch.from_numpy(array) for array in inputs)).numpy()
    np.testing.assert_allclose(ours, text.reference_encode(sentences), atol=1e-5)
    assert max(map(len, inputs[0])) == text.preprocessing.context_length
    return text


def clip_tokenizer(**fields: Any) -> Change:
    return edit_json("0_CLIPModel/tokenizer_config.json", **fields)
