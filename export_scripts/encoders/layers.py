"""What the encoders of every family are made of: layers that trace well."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.overrides import wrap_torch_function

from clipserve.errors import ExportError
from clipserve.preprocessing import ImagePreprocessing

# OpenAI CLIP's approximation of GELU is x * sigmoid(1.702 x).
QUICK_GELU = 1.702

PIXEL_MAX = 255.0  # uint8 pixels; preprocessors rescale them to [0, 1]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": F.silu,
}


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A layer of these numbers: `weight` `[out, in]`, `bias` `[out]`."""
    # On no device, since its own numbers are thrown away.
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach())
    return made


class PatchProjection(nn.Module):
    """From uint8 pixels to patches: rescaled, normalised, projected, and at their positions.

    Rescaling to [0, 1] and mean/std are affine, and so is the patch projection that follows: they are folded
    into it. Patches do not overlap, so that cutting them out is a reshape.

    Args:
        weight: of the convolution, `[W, 3, P, P]`.
        positions: of the patches, and what else is added to each, float64 `[patches, W]`.
        preprocessing: its mean and std.
    """

    def __init__(self, weight: Tensor, positions: Tensor, preprocessing: ImagePreprocessing):
        super().__init__()
        self.patch = weight.shape[-1]
        # Of a size that is no multiple of the patch's, a convolution leaves the rest out.
        self.height, self.width = (
            size // self.patch * self.patch for size in (preprocessing.crop_height, preprocessing.crop_width)
        )
        self.cuts = (self.height, self.width) != (preprocessing.crop_height, preprocessing.crop_width)
        std = torch.tensor(preprocessing.std, dtype=torch.float64).view(1, 3, 1, 1)
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64).view(1, 3, 1, 1)
        weight = weight.detach().double()
        self.projection = linear((weight / (PIXEL_MAX * std)).flatten(1).float())
        offset = -(weight * mean / std).flatten(1).sum(1)  # [W], what the mean takes away
        self.positions = nn.Parameter((positions + offset).float()[None])

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, patches, W]`."""
        if self.cuts:
            pixel_values = pixel_values[:, :, : self.height, : self.width]
        x = pixel_values.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # [N,3,h,P,w,P]
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [N, hw, 3PP]
        projected: Tensor = self.projection(x.to(self.positions.dtype)) + self.positions
        return projected


def resample_name(number: Any, folder: Path) -> str:
    """`ImagePreprocessing.resample` of an image processor.

    Raises:
        ExportError: it is none of Pillow's.
    """
    try:
        return Image.Resampling(int(number)).name.lower()
    except (TypeError, ValueError) as error:
        raise ExportError(
            f"{folder}: resample {number!r} is none of Pillow's filters, which are numbers"
        ) from error


class SelfAttention(nn.Module):
    """Multi-head self-attention with query, key and value as one matrix product."""

    def __init__(
        self,
        query: nn.Linear,
        key: nn.Linear,
        value: nn.Linear,
        out: nn.Linear,
        heads: int,
        *,
        causal: bool = False,
    ):
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = linear(
            torch.cat([query.weight, key.weight, value.weight]), torch.cat([query.bias, key.bias, value.bias])
        )
        self.out = out

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` `[N, L, W]`; `mask` boolean `[N, 1, 1, L]`, False where a key is padding."""
        # [N, L, 3W] -> three times [N, H, L, W/H]; unbind, since iterating would warn in a trace
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        attended: Tensor = self.out(y.transpose(1, 2).flatten(-2))
        return attended


class Mlp(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, up: nn.Linear, down: nn.Linear, activation: str):
        super().__init__()
        if activation == "quick_gelu":
            # x * sigmoid(ax) = silu(ax) / a: one pass over the widest tensor instead of three.
            up = linear(up.weight * QUICK_GELU, up.bias * QUICK_GELU)
            down = linear(down.weight * (1 / QUICK_GELU), down.bias)
        self.up = up
        self.down = down
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """`[N, L, W]` to `[N, L, W]`."""
        y: Tensor = self.down(self.activation(self.up(x)))
        return y


class PreNormLayer(nn.Module):
    """A transformer layer as CLIP has it: normalised before attention and before the MLP."""

    def __init__(self, attention: SelfAttention, mlp: Mlp, norm1: nn.LayerNorm, norm2: nn.LayerNorm):
        super().__init__()
        self.attention, self.mlp, self.norm1, self.norm2 = attention, mlp, norm1, norm2

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`[N, L, W]` to `[N, L, W]`."""
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]  # torch modules are Any


class PooledLayer(nn.Module):
    """The last `PreNormLayer` before all tokens but one are dropped: only that one is computed.

    The others give their keys and values, and are neither asked nor passed through the MLP: the same numbers
    for a sixth of the layer's products.
    """

    def __init__(self, layer: PreNormLayer):
        super().__init__()
        qkv, width = layer.attention.qkv, layer.attention.out.in_features
        self.heads = layer.attention.heads
        self.query = linear(qkv.weight[:width], qkv.bias[:width])
        self.key_value = linear(qkv.weight[width:], qkv.bias[width:])
        self.out = layer.attention.out
        self.mlp, self.norm1, self.norm2 = layer.mlp, layer.norm1, layer.norm2

    def forward(self, x: Tensor, pool: Callable[[Tensor], Tensor], mask: Tensor | None) -> Tensor:
        """`[N, L, W]` to `[N, W]`.

        Args:
            pool: takes the wanted token: `[N, L, W]` to `[N, W]`.
            mask: boolean `[N, 1, 1, L]`, False where the wanted token does not see another.
        """
        normed = self.norm1(x)
        q = self.query(pool(normed)).unflatten(-1, (self.heads, 1, -1))  # [N, H, 1, W/H]
        # [N, L, 2W] -> twice [N, H, L, W/H]
        k, v = self.key_value(normed).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = pool(x) + self.out(y.flatten(1))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]  # torch modules are Any


class PostNormLayer(nn.Module):
    """A transformer layer as BERT has it: normalised after attention and after the MLP."""

    def __init__(self, attention: SelfAttention, mlp: Mlp, norm1: nn.LayerNorm, norm2: nn.LayerNorm):
        super().__init__()
        self.attention, self.mlp, self.norm1, self.norm2 = attention, mlp, norm1, norm2

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`[N, L, W]` to `[N, L, W]`."""
        x = self.norm1(x + self.attention(x, mask))
        normed: Tensor = self.norm2(x + self.mlp(x))
        return normed


class Unnormalized(nn.Module):
    """Float32 embeddings as the projection gives them."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, D]` of any float type to float32 `[N, D]`."""
        return x.float()


class L2Normalized(nn.Module):
    """Float32 embeddings of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, D]` of any float type to float32 `[N, D]`."""
        return F.normalize(x.float(), dim=-1)


def last_stage(normalized: bool) -> nn.Module:
    """What an encoder ends with; whether it normalises is said by its spec."""
    return L2Normalized() if normalized else Unnormalized()


def _check_pixels(pixel_values: Tensor, dtype: torch.dtype, height: int, width: int, message: str) -> Tensor:
    """`pixel_values`, if they are `[N, 3, height, width]` of that type; else a ValueError, this message."""
    if (
        pixel_values.dtype != dtype
        or pixel_values.dim() != 4
        or pixel_values.size(1) != 3
        or pixel_values.size(2) != height
        or pixel_values.size(3) != width
    ):
        raise ValueError(message)
    return pixel_values


def _check_length(input_ids: Tensor, length: int, message: str) -> Tensor:
    """`input_ids`, if they are `[N, length]`; else a ValueError with this message."""
    if input_ids.dim() != 2 or input_ids.size(1) != length:
        raise ValueError(message)
    return input_ids


# Scripted, so that a trace keeps them as a branch. `torch.export` has types and fixed sizes of its own. Like
# PyTorch's own functions they can be spelled in another way, see `export_scripts.encoders.spelling`; but for
# `check_callers_pixels`, which a spelling of its twin leaves alone.
_spelled = wrap_torch_function(lambda checked, *rest: (checked,))
_checked_pixels = torch.jit.script(_check_pixels)
check_callers_pixels: Callable[[Tensor, torch.dtype, int, int, str], Tensor] = _checked_pixels
check_pixels: Callable[[Tensor, torch.dtype, int, int, str], Tensor] = _spelled(_checked_pixels)
check_length: Callable[[Tensor, int, str], Tensor] = _spelled(torch.jit.script(_check_length))
