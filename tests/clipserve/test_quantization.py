"""Quantised embeddings, beside sentence-transformers' `quantize_embeddings`."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from clipserve.encoder_spec import FloatArray
from clipserve.quantization import QUANTIZATIONS, Quantization, quantize


def embeddings(dimensions: int = 512) -> FloatArray:
    """Like CLIP's: of length 1, with one number that is far larger than the others."""
    numbers = np.random.default_rng(5).normal(size=(200, dimensions)).astype(np.float32)
    numbers[:, 7] = 9
    numbers[1, 3] = 0
    numbers[2, :5] = [-40, -20, -1e-30, 1e-30, 40]
    return numbers / np.linalg.norm(numbers, axis=1, keepdims=True)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("dimensions", [512, 768, 40])
def test_as_sentence_transformers(quantization: Quantization, dimensions: int) -> None:
    for embedding in embeddings(dimensions):
        most = np.abs(embedding).max()
        # Its own range of an embedding, given for each of its numbers.
        ranges = np.stack([np.full(dimensions, -most), np.full(dimensions, most)])
        (expected,) = quantize_embeddings(embedding[None], quantization, ranges)
        found = quantize(embedding, quantization)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_a_bit_for_each_number() -> None:
    embedding = np.asarray([0.5, -0.5, 0, 0.1, -0.1, -0.1, -0.1, 0.1, 0.9], np.float32)
    assert quantize(embedding, "ubinary").tolist() == [0b10010001, 0b10000000]
    assert quantize(embedding, "binary").tolist() == [0b10010001 - 128, 0b10000000 - 128]


def test_cosines_stay_what_they_were() -> None:
    """A number nine times as large as the others takes most of the range; without it, it would be 0.005."""
    exact = embeddings()[3:]
    rough = np.stack([quantize(embedding, "int8") for embedding in exact]).astype(np.float64)
    rough /= np.linalg.norm(rough, axis=1, keepdims=True)
    np.testing.assert_allclose(rough @ rough.T, exact @ exact.T, rtol=0, atol=0.02)
