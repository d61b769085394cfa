from __future__ import annotations

import numpy as np
import pytest

from clipserve.encoder_spec import Score
from clipserve.similarity import (
    cosine,
    cosine_similarity,
    probabilities,
    sigmoid,
    softmax,
    unit_vectors,
)
from tests.clipserve.wire.bodies import (
    KNOWN_COSINES,
    KNOWN_PROBABILITIES,
)


def test_softmax_known_answer() -> None:
    """The printed example of the SDK that this project follows."""
    found = softmax(100 * np.array([KNOWN_COSINES]))
    np.testing.assert_allclose(found[0], KNOWN_PROBABILITIES, rtol=2e-4)
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-15)


def test_softmax_of_logits_that_would_overflow() -> None:
    assert softmax(np.array([[1e6, 0.0, 1e6], [-1e6, -1e6, -1e6]])).tolist() == [
        [0.5, 0, 0.5],
        pytest.approx([1 / 3] * 3),
    ]


def test_sigmoid_of_logits_that_would_overflow() -> None:
    found = sigmoid(np.array([[1e6, 0.0, -1e6], [2.0, -2.0, -745.0]]))
    assert found[0].tolist() == [1, 0.5, 0]
    np.testing.assert_allclose(found[1], [0.8807970779778823, 0.1192029220221176, 0], rtol=1e-12, atol=1e-300)


def test_probabilities_by_either_score() -> None:
    cosines = np.array([[0.2, 0.1], [0.0, 0.12]])
    logits = 50 * cosines
    found = probabilities(cosines, Score("softmax", 50.0, -3.0))
    np.testing.assert_allclose(found, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-12)
    found = probabilities(cosines, Score("sigmoid", 50.0, -3.0))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(3 - logits)), rtol=1e-12)


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


def test_cosine_of_two_vectors() -> None:
    one, other = np.array([3, 4], np.float32), np.array([-0.06, -0.08], np.float32)
    assert cosine(one, one) == pytest.approx(1)
    assert cosine(one, other) == pytest.approx(-1)
    # No direction is no likeness: what is compared with a bound does not pass it.
    assert cosine(one, np.zeros(2, np.float32)) == 0
    assert cosine(one, np.array([np.nan, 1], np.float32)) == 0


def test_unit_vectors_keep_their_direction() -> None:
    found = unit_vectors(np.array([[3, 4], [0, -0.5]], np.float32))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, -1]], rtol=1e-6)
    assert found.dtype == np.float32
