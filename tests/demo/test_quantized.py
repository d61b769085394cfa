"""Retrieval with quantised embeddings whose answers are known; the figures are `make quantized`'s."""

from __future__ import annotations

import json

import numpy as np

from clipserve.quantization import quantize
from demo.quantized import DATA, TYPES, WAYS, recall, signs


def of_types(embeddings: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "float": embeddings,
        **{
            name: np.stack([quantize(e, name) for e in embeddings]).astype(np.float32)
            for name in ("int8", "binary")
        },
    }


def test_signs_are_those_of_the_numbers() -> None:
    embeddings = np.random.default_rng(3).normal(size=(5, 24)).astype(np.float32)
    np.testing.assert_array_equal(signs(of_types(embeddings)["binary"]), np.sign(embeddings))


def test_a_text_finds_its_picture_in_every_way() -> None:
    pictures = np.random.default_rng(4).normal(size=(20, 64)).astype(np.float32)
    near = pictures + np.float32(0.3) * np.random.default_rng(5).normal(size=pictures.shape).astype(
        np.float32
    )
    assert set(of_types(near)) == set(TYPES)
    for way in WAYS:
        assert recall(of_types(pictures), of_types(near), way) == 1
        # Each text beside the next one's picture.
        assert recall(of_types(pictures), of_types(np.roll(near, 1, 0)), way) == 0


def test_what_was_measured_is_of_every_way() -> None:
    found = json.loads(DATA.read_text(encoding="utf-8"))
    assert [*found["ways"]] == [*WAYS]
    assert (found["languages"], found["scenes"]) == (40, 200)
    assert found["ways"]["float"]["largest_loss"] == 0
