"""How alike embeddings are: the product's arithmetic on vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from clipserve.encoder_spec import FloatArray, Score


def unit_vectors(vectors: FloatArray) -> FloatArray:
    """Vectors `[N, D]`, none of them zero, brought to length 1."""
    scaled: FloatArray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def cosine(one: FloatArray, other: FloatArray) -> float:
    """Cosine of two vectors `[D]`; 0 where one of them has no direction, as zero or NaN."""
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.dot(one, other)) / norms if norms > 0 else 0.0


def cosine_similarity(images: FloatArray, texts: FloatArray) -> np.ndarray[Any, Any]:
    """Cosine of every `[I, D]` row with every `[T, D]` row: float64 `[I, T]` in [-1, 1]."""
    i, t = images.astype(np.float64), texts.astype(np.float64)
    i /= np.linalg.norm(i, axis=1, keepdims=True)
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    return np.clip(i @ t.T, -1.0, 1.0)


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Softmax over the last axis, shifted by its maximum so that no exponential overflows."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def sigmoid(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Sigmoid of each number by itself, so that no exponential overflows."""
    return np.asarray(np.exp(-np.logaddexp(0, -logits)))


def probabilities(cosines: np.ndarray[Any, Any], score: Score) -> np.ndarray[Any, Any]:
    """Probabilities of the texts of each picture, of their cosines: float64 `[I, T]`."""
    logits = score.scale * cosines
    return softmax(logits) if score.kind == "softmax" else sigmoid(logits + score.bias)
