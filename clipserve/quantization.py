"""Embeddings in fewer bits: int8, uint8, binary and ubinary, as sentence-transformers' `quantize_embeddings`.

int8 and uint8 have a bucket for each of 256 equal parts of a range, which that function takes from other
embeddings or is given. Here it is the embedding's own, from -m to m where m is its largest absolute number:
that needs no collection to be calibrated on, an embedding does not change with those beside it, and what is
compared by cosine does not see a scale. binary and ubinary have a bit for each number, 1 where it is above 0,
eight to a byte, the first in the highest; binary is that byte less 128, as Cohere's is.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from clipserve.encoder_spec import FloatArray

Quantization = Literal["int8", "uint8", "binary", "ubinary"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)


def quantize(embedding: FloatArray, quantization: Quantization) -> npt.NDArray[Any]:
    """One embedding, float32 `[D]`, quantised.

    Returns:
        int8 `[D]` in [-128, 127] or uint8 `[D]` in [0, 255]; int8 or uint8 `[ceil(D / 8)]` of bits.
    """
    if quantization in ("binary", "ubinary"):
        bits = np.packbits(embedding > 0)
        return bits if quantization == "ubinary" else _centred(bits)
    most = np.abs(embedding).max()
    # In float32, and in this order, so that each number falls into the bucket where that function puts it.
    buckets = np.clip(np.floor((embedding + most) / ((most + most) / np.float32(255))), 0, 255).astype(
        np.uint8
    )
    return buckets if quantization == "uint8" else _centred(buckets)


def _centred(numbers: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    return (numbers.astype(np.int16) - 128).astype(np.int8)
