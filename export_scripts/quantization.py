"""Finds how an encoder is put into int8: what is smoothed, and which layers stay in half precision.

int8 in all layers is fastest, and smoothing costs no time, so that the exponent with the least loss is taken
first. Where that is not enough, the layers that lose most for the time they save are left in half precision,
as few as will do. Loss is measured on calibration inputs, which are none of those that judge an export; time
is estimated by multiplications.

All of it with 7 bits an activation, which a CPU without AVX512-VNNI runs: 8 lose less.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipserve.encoder_spec import PARITY_BOUNDS, Quantization
from clipserve.errors import ParityError
from export_scripts.encoders.int8 import (
    COARSE_LEVELS,
    Layer,
    QuantizedLinear,
    observe,
    quantizable,
    quantize,
    smooth,
)

EXPONENTS = (0.5, 0.65, 0.8)

# Of the multiplications that are to be in int8, or half weights are as fast.
LEAST_SHARE = 0.5

# Which layer loses most is asked of one calibration input in so many: each layer is tried by itself.
ONE_IN = 4

# Of what the bound allows a vector to lose. Calibration inputs are others than those that judge, and fewer.
SHARE_OF_LOSS = 0.5


class Loss(NamedTuple):
    """Cosines to float32, over the calibration inputs."""

    min_cosine: float
    mean_cosine: float

    @property
    def enough(self) -> bool:
        """Whether it leaves the bound a margin."""
        bound = PARITY_BOUNDS["int8"]
        least, mean = (
            1 - SHARE_OF_LOSS * (1 - (allowed or 0.0)) for allowed in (bound.min_cosine, bound.mean_cosine)
        )
        return self.min_cosine >= least and self.mean_cosine >= mean


def find_quantization(
    encoder: nn.Module, inputs: Sequence[tuple[Tensor, ...]]
) -> tuple[Quantization, dict[str, Layer]]:
    """The plan for an encoder, and what was seen of its layers.

    Args:
        encoder: float32; stays as it is.
        inputs: to calibrate on, a batch each.

    Raises:
        ParityError: most layers would have to stay in half precision, or a weight is beyond its range.
    """
    layers = observe(encoder, inputs)
    expected = _embed(encoder, inputs)

    def loss(exponent: float, half: Sequence[str]) -> Loss:
        plan = Quantization(exponent, tuple(half), 0.0, 0.0, 0.0)
        return _loss(quantize(copy.deepcopy(encoder), plan, peaks(layers), COARSE_LEVELS), inputs, expected)

    losses = {exponent: loss(exponent, ()) for exponent in EXPONENTS}
    exponent = max(losses, key=lambda one: losses[one].mean_cosine)
    half: list[str] = []
    found = losses[exponent]
    if not found.enough:
        worst_first = _worst_first(encoder, exponent, layers, inputs)
        fewest, most = 1, len(worst_first)
        while fewest < most:
            middle = (fewest + most) // 2
            if loss(exponent, worst_first[:middle]).enough:
                most = middle
            else:
                fewest = middle + 1
        half = worst_first[:fewest]
        found = loss(exponent, half)
    work = sum(layer.work for layer in layers.values())
    share = 1 - sum(layers[name].work for name in half) / work
    if share < LEAST_SHARE:
        of_all = losses[exponent]
        raise ParityError(
            f"PRECISION=int8: in all layers it gives min cosine {of_all.min_cosine:.6f}, mean "
            f"{of_all.mean_cosine:.6f} over the calibration inputs, the bound is {PARITY_BOUNDS['int8']}, "
            f"and to keep it {1 - share:.0%} of the multiplications would stay in half precision; run "
            "'make export PRECISION=fp16'"
        )
    return Quantization(exponent, tuple(half), share, *found), layers


def peaks(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """See `Layer.peaks`, by name."""
    return {name: layer.peaks for name, layer in layers.items()}


def _worst_first(
    encoder: nn.Module,
    exponent: float,
    layers: Mapping[str, Layer],
    inputs: Sequence[tuple[Tensor, ...]],
) -> list[str]:
    """Names of the layers, by what each alone loses in int8 for each multiplication."""
    smoothed = smooth(copy.deepcopy(encoder), exponent, peaks(layers))
    inputs = [tuple(tensor[::ONE_IN] for tensor in one) for one in inputs]
    expected = _embed(encoder, inputs)
    losses: dict[str, float] = {}
    for name, layer in list(quantizable(smoothed)):
        smoothed.set_submodule(name, QuantizedLinear(layer, COARSE_LEVELS))
        losses[name] = 1 - _loss(smoothed, inputs, expected).mean_cosine
        smoothed.set_submodule(name, layer)
    return sorted(losses, key=lambda name: losses[name] / layers[name].work, reverse=True)


def _embed(encoder: nn.Module, inputs: Sequence[tuple[Tensor, ...]]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([encoder(*one) for one in inputs])


def _loss(encoder: nn.Module, inputs: Sequence[tuple[Tensor, ...]], expected: Tensor) -> Loss:
    cosines = F.cosine_similarity(_embed(encoder, inputs).double(), expected.double(), dim=-1)
    # NaN compares false with everything; a layer that gives it is worth nothing.
    cosines = cosines.nan_to_num(nan=-1.0)
    return Loss(float(cosines.min()), float(cosines.mean()))
