"""Weights in int8 by output channel, activations by token: nearly half of a half-precision file, and faster.

Each row of a layer's input is divided by its own largest magnitude, so that a vector depends on no neighbour,
and rounded to a fixed number of levels; each row of the weight has a scale. In the file they are plain
operators, for any libtorch. A worker on a CPU packs them after loading for a product of bytes
(`clipserve.prepack`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipserve.encoder_spec import Quantization
from export_scripts.encoders.bert import BertTextEncoder
from export_scripts.encoders.half import halve_weights
from export_scripts.encoders.layers import PatchProjection, PooledLayer, PostNormLayer, PreNormLayer

WEIGHT_LEVELS = 127  # of a signed byte, on either side of zero
COARSE_LEVELS = 63  # of an activation, where a CPU has no AVX512-VNNI: 7 bits

# Of a row of zeros. Its quotient is zero, whatever it is.
SMALLEST = 1e-30

# Beyond it a scale would move more than float32 holds of a channel beside others.
MOST_SMOOTHING = 1e4

# Largest magnitudes of each channel of a layer's input, by the layer's name.
Peaks = Mapping[str, Tensor]


class QuantizedLinear(nn.Module):
    """A linear layer with its weight in int8; `clipserve.prepack` knows it by this name.

    Args:
        levels: that an activation may have on either side of zero: 127 in a file, see `int8_levels` of
            `clipserve.hardware`.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear, levels: int = WEIGHT_LEVELS):
        super().__init__()
        self.levels = levels
        weight = layer.weight.detach()
        scale = (weight.abs().amax(1) / WEIGHT_LEVELS).clamp_min(SMALLEST)
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)  # float32 [out]
        # Always there: packing then knows one graph.
        self.bias = nn.Parameter(torch.zeros(len(weight))) if layer.bias is None else layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """float32 `[…, in]` to `[…, out]`."""
        largest = x.abs().amax(-1, keepdim=True).clamp_min(SMALLEST)
        rounded = (x / largest * self.levels).round() / self.levels
        # Whole numbers times whole numbers: a product of floats adds them all but exactly.
        product = F.linear(rounded, self.weight.float()) * self.scale
        return torch.addcmul(self.bias, product, largest)


class SmoothedPostNormLayer(nn.Module):
    """A `PostNormLayer` whose norms give some channels smaller than its residuals need them.

    Args:
        before, between: what to multiply the residual past attention and past the MLP by, float32 `[W]`.
    """

    def __init__(self, layer: PostNormLayer, before: Tensor, between: Tensor):
        super().__init__()
        self.attention, self.mlp, self.norm1, self.norm2 = (
            layer.attention,
            layer.mlp,
            layer.norm1,
            layer.norm2,
        )
        self.before, self.between = nn.Parameter(before), nn.Parameter(between)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`[N, L, W]` to `[N, L, W]`, both as their norms give them."""
        # One pass, like the sum that it stands for.
        x = self.norm1(torch.addcmul(self.attention(x, mask), x, self.before))
        normed: Tensor = self.norm2(torch.addcmul(self.mlp(x), x, self.between))
        return normed


@dataclass(frozen=True)
class Layer:
    """A linear layer that may be in int8.

    Attributes:
        work: multiplications for all calibration inputs.
        peaks: largest magnitude of each channel of its input, float32 `[in]`.
    """

    work: int
    peaks: Tensor


def quantizable(encoder: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of an encoder that may be in int8, by name.

    Not what takes pixels, see `halve_weights`, nor what makes the embedding at the very end, a ten-thousandth
    of the work: its rounding would meet nothing that evens it out.
    """
    exact = {module.projection for module in encoder.modules() if isinstance(module, PatchProjection)}
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear) and "." in name and module not in exact:
            yield name, module


def observe(encoder: nn.Module, inputs: Sequence[tuple[Tensor, ...]]) -> dict[str, Layer]:
    """Runs a float32 encoder and looks at what its layers are given."""
    seen: dict[str, Layer] = {}

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(module: Any, arguments: tuple[Tensor]) -> None:
            x = arguments[0].detach().flatten(0, -2)
            peaks, work = x.abs().amax(0), x.shape[0] * module.weight.numel()
            if name in seen:
                peaks, work = torch.maximum(peaks, seen[name].peaks), work + seen[name].work
            seen[name] = Layer(work, peaks)

        return hook

    with ExitStack() as hooks, torch.inference_mode():
        for name, layer in quantizable(encoder):
            hooks.callback(layer.register_forward_pre_hook(look(name)).remove)
        for one in inputs:
            encoder(*one)
    return {name: Layer(layer.work, layer.peaks.clone()) for name, layer in seen.items()}


def smooth(encoder: nn.Module, exponent: float, peaks: Peaks) -> nn.Module:
    """Moves scales of channels from activations into the weights that meet them: the same function.

    SmoothQuant (Xiao et al. 2023, https://arxiv.org/abs/2211.10438, equation 4): a channel is divided by
    `max|X|^exponent / max|W|^(1 - exponent)`. The division is in the layer norm before, or in the rows of
    the weight that gives values to attention; the multiplication is in the columns of the next weight, and
    where a residual goes past it, there.

    Args:
        exponent: 0 leaves all as it is.
        peaks: see `observe`.
    """
    if exponent == 0:
        return encoder
    names = {module: name for name, module in encoder.named_modules()}

    def scales(*layers: nn.Linear) -> Tensor:
        """Of the channels of what these layers are given; their columns are multiplied by them."""
        of_input = torch.stack([peaks[names[layer]] for layer in layers]).amax(0)
        of_weight = torch.cat([layer.weight for layer in layers]).abs().amax(0)
        found = of_input**exponent / of_weight ** (1 - exponent)
        # A channel that is always zero, or that nothing looks at.
        found = torch.where((of_input > 0) & (of_weight > 0), found, torch.ones_like(found))
        found = found.clamp(1 / MOST_SMOOTHING, MOST_SMOOTHING)
        for layer in layers:
            layer.weight.mul_(found)
        return found

    def divide(module: Any, rows: slice, by: Tensor) -> None:
        module.weight[rows].div_(by.view(-1, *[1] * (module.weight.dim() - 1)))
        module.bias[rows].div_(by)

    whole = slice(None)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, PreNormLayer | PostNormLayer):
                width = module.attention.out.in_features
                divide(module.attention.qkv, slice(2 * width, None), scales(module.attention.out))
            elif isinstance(module, PooledLayer):
                width = module.out.in_features
                divide(module.key_value, slice(width, None), scales(module.out))
        for module in encoder.modules():
            if isinstance(module, PreNormLayer):
                divide(module.norm1, whole, scales(module.attention.qkv))
                divide(module.norm2, whole, scales(module.mlp.up))
            elif isinstance(module, PooledLayer):
                divide(module.norm1, whole, scales(module.query, module.key_value))
                divide(module.norm2, whole, scales(module.mlp.up))
        if isinstance(encoder, BertTextEncoder):
            norm = encoder.norm
            layer: Any
            for index, layer in enumerate(encoder.layers):
                before, between = scales(layer.attention.qkv), scales(layer.mlp.up)
                divide(norm, whole, before)
                divide(layer.norm1, whole, between)
                encoder.layers[index] = SmoothedPostNormLayer(layer, before, between)
                norm = layer.norm2
    return encoder


def quantize(encoder: nn.Module, plan: Quantization, peaks: Peaks, levels: int = WEIGHT_LEVELS) -> nn.Module:
    """Puts the layers of an encoder into int8, in place.

    Those that the plan leaves out, and its tables, are put into half precision.

    Args:
        encoder: float32.
        peaks: see `observe`.
        levels: see `QuantizedLinear`.

    Raises:
        ParityError: see `halve_weights`.
    """
    with torch.no_grad():
        smooth(encoder, plan.smoothing, peaks)
        for name, layer in list(quantizable(encoder)):
            if name not in plan.half:
                encoder.set_submodule(name, QuantizedLinear(layer, levels))
        return halve_weights(encoder)
