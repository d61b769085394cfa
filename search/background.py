"""How far a similarity stands out, which means the same for a text and for a picture.

For CLIP, a text and a picture of it have a cosine similarity of 0.3, two pictures of one thing 0.9: no bound
on it fits both. So similarities are told in standard deviations above those that the same query has with
pictures of the table taken at random: the standard score of statistics. Nearly all of a table lies below 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipserve.encoder_spec import FloatArray
from clipserve.similarity import unit_vectors

# Pictures taken at random: the deviation is then known to some 2 %.
SAMPLE = 1000

# Below it all pictures of the sample are equally similar, and none stands out.
LEAST_DEVIATION = 1e-6


@dataclass(frozen=True)
class Background:
    """Mean and standard deviation of the cosine similarities of a query with pictures at random."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, embedding: FloatArray, sample: FloatArray) -> Background:
        """That of a query, float32 `[D]`, and of embeddings, float32 `[N, D]`; none is zero."""
        if not len(sample):
            return cls(0.0, 0.0)
        scores = unit_vectors(sample) @ unit_vectors(embedding[None])[0]
        return cls(float(scores.mean()), float(scores.std()))

    def standard_score(self, score: float) -> float:
        """Standard deviations by which a cosine similarity lies above the mean."""
        return 0.0 if self.deviation < LEAST_DEVIATION else (score - self.mean) / self.deviation
