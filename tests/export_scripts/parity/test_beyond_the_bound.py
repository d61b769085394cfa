"""What differs from its original is not published."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clipserve import loading
from clipserve.certificate import ParityBound
from clipserve.encoder import ExportedTextEncoder
from clipserve.encoder_spec import (
    PARITY_BOUNDS,
    Modality,
    Precision,
)
from clipserve.errors import ParityError
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.parity import subjects
from export_scripts.publish import export_encoder
from tests.export_scripts.exports import CPU, empty, rebuilt

# torch's own filter for warnings about its own code, which pytest's filters replace. (Tracing an embedding
# that knows its padding gives one.) Warnings about ours stay errors.
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn.functional")


def test_beyond_the_bound_nothing_is_published(
    pair: CheckpointPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARITY_BOUNDS, "fp32", ParityBound(1e-12, 1.1))
    with pytest.raises(ParityError) as caught:
        export_encoder(pair, "text", "cpu", "fp32", tmp_path)
    message = str(caught.value)
    assert message.startswith("text encoder in fp32 on cpu: max-abs ")
    assert "min cosine 1.000000 (worst: " in message
    assert "the bound is max-abs <= 1e-12 and cosine >= 1.1; nothing was published" in message
    assert empty(tmp_path)


class Around(nn.Module):
    """Base of wrong encoders."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner


class FirstTokensOnly(Around):
    """Right for every input up to the length of the trace."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        n = subjects.TRACE_LENGTH
        return self.inner(input_ids[:, :n], attention_mask[:, :n])  # type: ignore[no-any-return]


class WithoutMask(Around):
    """Right for every input without padding."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.inner(input_ids, torch.ones_like(attention_mask))  # type: ignore[no-any-return]


class NanWhereLong(Around):
    """NaN for a few inputs only, so that the least of all cosines may be found beside it."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        long = attention_mask.sum(1, keepdim=True) > 100
        return torch.where(long, float("nan"), self.inner(input_ids, attention_mask))


class Reversed(Around):
    """Right for batches of one."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.inner(*inputs).flip(0)  # type: ignore[no-any-return]


class Half(Around):
    """An embedding of another length."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.inner(*inputs)[:, :16]  # type: ignore[no-any-return]


class Mirrored(Around):
    """Pictures from right to left."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.inner(pixel_values.flip(3))  # type: ignore[no-any-return]


class ChannelsSwapped(Around):
    """BGR for RGB."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.inner(pixel_values.flip(1))  # type: ignore[no-any-return]


def nudged(encoder: nn.Module) -> nn.Module:
    """One weight off by a little."""
    changed = copy.deepcopy(encoder)
    with torch.no_grad():
        changed.projection.weight[3, 5] += 1e-3  # type: ignore[operator, index, union-attr]
    return changed


def not_a_number(encoder: nn.Module) -> nn.Module:
    """NaN compares false with every bound."""
    changed = copy.deepcopy(encoder)
    with torch.no_grad():
        changed.projection.weight[0, 0] = float("nan")  # type: ignore[operator, union-attr]
    return changed


@pytest.mark.parametrize(
    ("modality", "precision", "change"),
    [
        ("text", "fp32", nudged), ("image", "fp32", nudged), ("text", "fp32", not_a_number),
        ("image", "bf16", not_a_number), ("text", "fp32", FirstTokensOnly), ("text", "bf16", FirstTokensOnly),
        ("text", "bf16", WithoutMask), ("text", "bf16", Reversed), ("image", "bf16", Reversed),
        ("text", "bf16", NanWhereLong), ("text", "fp32", Half), ("image", "fp32", Half),
        ("image", "bf16", Mirrored), ("image", "bf16", ChannelsSwapped),
    ],
)  # fmt: skip
def test_wrong_encoders_are_not_published(
    modality: Modality,
    precision: Precision,
    change: Callable[[nn.Module], nn.Module],
    pair: CheckpointPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Some have operators that no encoder has, and would be refused for those alone.
    monkeypatch.setattr(loading, "check_operators", lambda path, module: None)
    with pytest.raises(ParityError, match=r"(max-abs .*min cosine|the export gives .* the original )"):
        export_encoder(rebuilt(pair, modality, change), modality, "cpu", precision, tmp_path)
    assert empty(tmp_path)


def test_failed_export_leaves_the_published_encoder_alone(pair: CheckpointPair, tmp_path: Path) -> None:
    good = export_encoder(pair, "text", "cpu", "fp32", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ParityError):
        export_encoder(rebuilt(pair, "text", nudged), "text", "cpu", "fp32", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert ExportedTextEncoder(tmp_path / f"{good.stem}.pt", CPU).spec == good
