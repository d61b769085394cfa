"""What was measured of an encoder file before it was published, and within what it had to stay."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParityCase:
    """One comparison of the exported encoder with its eager original.

    Attributes:
        name: what was compared, such as `random tokens, batch 3 x 17, padded`.
        max_abs_diff: largest absolute difference of any component.
        min_cosine: smallest cosine similarity of any row.
    """

    name: str
    max_abs_diff: float
    min_cosine: float


@dataclass(frozen=True)
class ParityBound:
    """What a variant must keep to; None where it is not bound."""

    max_abs_diff: float | None
    min_cosine: float | None

    def holds(self, max_abs_diff: float, min_cosine: float) -> bool:
        """Whether both measured numbers are within the bound."""
        return (self.max_abs_diff is None or max_abs_diff <= self.max_abs_diff) and (
            self.min_cosine is None or min_cosine >= self.min_cosine
        )

    def __str__(self) -> str:
        parts = []
        if self.max_abs_diff is not None:
            parts.append(f"max-abs <= {self.max_abs_diff:g}")
        if self.min_cosine is not None:
            parts.append(f"cosine >= {self.min_cosine:g}")
        return " and ".join(parts)


@dataclass(frozen=True)
class Golden:
    """An input and the embedding that the eager original gives for it.

    Attributes:
        input: a sentence, or a PNG file in base64.
        embedding: float32 little-endian in base64, `[embedding_dim]`.
    """

    input: str
    embedding: str


@dataclass(frozen=True)
class ParityCertificate:
    """The measured difference between an exported encoder and its eager original."""

    bound: ParityBound
    max_abs_diff: float
    min_cosine: float
    cases: tuple[ParityCase, ...]
    golden: Golden
