"""Embedding tables that stay in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clipserve import mapping
from clipserve.encoder import ExportedTextEncoder
from clipserve.encoder_spec import Precision
from clipserve.loading import load_for_inference, load_torchscript
from clipserve.mapping import map_large_weights
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.publish import export_encoder

CPU = torch.device("cpu")
# The tiny encoders' tables of 2,000 tokens are as large; nothing else of theirs is.
TABLE_BYTES = 2000 * 48 * 2


def mapped(path: Path) -> int:
    """Ranges of this process's memory that are that file's."""
    return sum(line.endswith(str(path)) for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_table_stays_in_the_file(
    precision: Precision, pair: CheckpointPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = export_encoder(pair, "text", "cpu", precision, tmp_path)
    path = tmp_path / spec.file_name
    held = ExportedTextEncoder(path, CPU)
    assert mapped(path) == 0
    monkeypatch.setattr(mapping, "LARGE_BYTES", TABLE_BYTES)
    left = ExportedTextEncoder(path, CPU)
    assert mapped(path) == 1
    ids, mask = left.tokenizer.pad(
        [left.tokenizer.tokenize(text).ids for text in ("két kutya", "", "雪 x y")]
    )
    np.testing.assert_array_equal(left.embed(ids, mask), held.embed(ids, mask))
    del left
    assert mapped(path) == 0


def test_a_weight_that_is_not_in_the_file_stays(
    text_path: Path, image_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "LARGE_BYTES", TABLE_BYTES)
    module = load_torchscript(text_path, CPU)
    before = {name: parameter.data_ptr() for name, parameter in module.named_parameters()}
    map_large_weights(image_path, module)
    assert {name: parameter.data_ptr() for name, parameter in module.named_parameters()} == before


def test_small_weights_are_held(text_path: Path) -> None:
    module = load_for_inference(text_path, CPU)
    assert mapped(text_path) == 0
    assert module is not None
