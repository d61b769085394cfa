"""The same computation in other operators, for programs that do not have those that encoders are written in.

An older PyTorch lacks some, and Elasticsearch admits a list of its own. No encoder is written twice for that:
while it is traced, calls of the functions that it is built of are spelled in another way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from clipserve.errors import ExportError

Spelling = Mapping[Callable[..., Any], Callable[..., Any]]


class Spelled(TorchFunctionMode):
    """Within it, functions of PyTorch, and `check_pixels`, are what a spelling says of them."""

    def __init__(self, spelling: Spelling):
        super().__init__()
        self._spelling = spelling

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls `func`, or what it is spelled as."""
        return self._spelling.get(func, func)(*args, **(kwargs or {}))


def fixed_size(x: Tensor, dim: int) -> int:
    """A size that is the encoder's and not its input's, and so a number in the graph."""
    with warnings.catch_warnings():
        # That it is a number is what the tracer warns of.
        warnings.filterwarnings("ignore", "Converting a tensor to a Python integer")
        return int(x.shape[dim])


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """`scaled_dot_product_attention`, which came with PyTorch 2.0, written out.

    Args:
        query: `[N, H, L, W]`; key and value alike, with a length of their own.
        attn_mask: boolean, False where a key is not seen.

    Raises:
        ExportError: causal attention, which needs a mask made on a device.
    """
    if is_causal:
        raise ExportError("an encoder with causal attention cannot be traced for a PyTorch before 2.0")
    # By this name it stays a number; as an operand it would be a tensor, on a device.
    scale = torch.ops.aten.mul.Scalar
    scores = scale(query.matmul(key.transpose(-2, -1)), fixed_size(query, -1) ** -0.5)
    if attn_mask is not None:
        scores = scores.masked_fill(attn_mask.logical_not(), float("-inf"))
    attended: Tensor = scores.softmax(-1).matmul(value)
    return attended


BEFORE_2_0: Spelling = {F.scaled_dot_product_attention: attention}
