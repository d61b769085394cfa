from __future__ import annotations

import numpy as np
import pytest

from clipserve.similarity import cosine_similarity, softmax
from tests.clipserve.wire.bodies import (
    KNOWN_COSINES,
    KNOWN_PROBABILITIES,
)


def test_softmax_known_answer() -> None:
    """The printed example of the SDK that this project follows."""
    probabilities = softmax(100 * np.array([KNOWN_COSINES]))
    np.testing.assert_allclose(probabilities[0], KNOWN_PROBABILITIES, rtol=2e-4)
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-15)


def test_softmax_of_logits_that_would_overflow() -> None:
    assert softmax(np.array([[1e6, 0.0, 1e6], [-1e6, -1e6, -1e6]])).tolist() == [
        [0.5, 0, 0.5],
        pytest.approx([1 / 3] * 3),
    ]


def test_cosines_do_not_depend_on_lengths_and_stay_within_1() -> None:
    images = np.array([[3, 4, 0], [1e-6, 1e-6, 1e-6]], dtype=np.float32)
    texts = np.array([[0.6, 0.8, 0], [-30, -40, 0], [1e5, 1e5, 1e5]], dtype=np.float32)
    found = cosine_similarity(images, texts)
    expected = [[1, -1, 7 / 5 / 3**0.5], [7 / 5 / 3**0.5, -7 / 5 / 3**0.5, 1]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.max() <= 1
    assert found.min() >= -1
    # The caller's arrays stay as they were.
    assert images[0].tolist() == [3, 4, 0]
