"""Functions spelled in other operators give the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipserve.errors import ExportError
from export_scripts.encoders.layers import check_pixels
from export_scripts.encoders.spelling import BEFORE_2_0, Spelled
from export_scripts.packages.elasticsearch import SPELLING

X = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1))


def test_attention() -> None:
    query, key, value = X.unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    seen = torch.ones(3, 1, 1, 5, dtype=torch.bool)
    seen[1, ..., 3:] = False
    for mask in (None, seen):
        for rows in (query, query[:, :, :1]):
            wanted = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask)
            with Spelled(BEFORE_2_0):
                found = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask)
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_causal_attention_is_not_written_out() -> None:
    with Spelled(BEFORE_2_0), pytest.raises(ExportError, match=r"causal attention .* before 2\.0"):
        F.scaled_dot_product_attention(X, X, X, is_causal=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.unflatten(-1, (3, 2, -1)),
        lambda x: x.flatten(-2),
        lambda x: torch.stack(x.unbind(0)[::-1]),
        lambda x: x.sum(1),
        lambda x: F.normalize(x[0], dim=-1),
    ],
    ids=["unflatten", "flatten", "unbind", "sum", "normalize"],
)
def test_elasticsearch_s_operators(call: Callable[[Tensor], Tensor]) -> None:
    wanted = call(X)
    with Spelled(SPELLING):
        found = call(X)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_elasticsearch_s_comparison() -> None:
    """Of a mask, and of nothing else."""
    mask = torch.tensor([[1, 1, 0]])
    with Spelled(SPELLING):
        assert torch.equal(mask > 0, torch.tensor([[True, True, False]]))


def test_within_it_only() -> None:
    """What encoders check of pixels is a function like PyTorch's own."""
    floats = torch.rand(1, 3, 48, 48)
    with Spelled({check_pixels: lambda pixels, *_: pixels}):
        assert check_pixels(floats, torch.uint8, 48, 48, "uint8 is wanted") is floats
    with pytest.raises(Exception, match="uint8 is wanted"):
        check_pixels(floats, torch.uint8, 48, 48, "uint8 is wanted")
