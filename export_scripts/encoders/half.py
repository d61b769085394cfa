"""Weights in half precision, arithmetic in float32: half the file, half the memory, nearly the same vectors.

In the file they are plain operators: a weight is cast at each call, by any libtorch. A worker on a CPU packs
them after loading instead, for a product that takes them as they are (`clipserve.prepack`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipserve.errors import ParityError
from export_scripts.encoders.layers import PatchProjection

LARGEST = torch.finfo(torch.float16).max


class HalfLinear(nn.Module):
    """A linear layer with its weight in half precision; `clipserve.prepack` knows it by this name."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().half())
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """float32 `[…, in]` to `[…, out]`."""
        return F.linear(x, self.weight.float(), self.bias)


class HalfEmbedding(nn.Module):
    """A table of embeddings in half precision."""

    def __init__(self, table: nn.Embedding):
        super().__init__()
        self.weight = nn.Parameter(table.weight.detach().half())

    def forward(self, ids: Tensor) -> Tensor:
        """int64 `[…]` to float32 `[…, W]`."""
        return F.embedding(ids, self.weight).float()


def halve_weights(encoder: nn.Module) -> nn.Module:
    """Puts the matrices of an encoder, which are nearly all of its weights, into half precision, in place.

    But for the one that takes pixels, which are not centred: what rounding takes from its weights comes
    multiplied by the mean, which is only taken away behind it. Of ViT-B/32's products it is a fortieth.

    Raises:
        ParityError: a weight is beyond half precision's range.
    """
    exact = {module.projection for module in encoder.modules() if isinstance(module, PatchProjection)}
    for name, module in list(encoder.named_modules()):
        if not isinstance(module, nn.Linear | nn.Embedding) or module in exact:
            continue
        largest = float(module.weight.abs().max())
        # NaN compares false with everything.
        if not largest <= LARGEST:
            raise ParityError(
                f"PRECISION=fp16: a weight of {name} is {largest:g}, half precision holds up to "
                f"{LARGEST:g}; run 'make export PRECISION=fp32'"
            )
        half = HalfLinear(module) if isinstance(module, nn.Linear) else HalfEmbedding(module)
        encoder.set_submodule(name, half)
    return encoder
