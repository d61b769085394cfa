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
    mean_cosine: float | None = None

    def holds(self, max_abs_diff: float, min_cosine: float, mean_cosine: float) -> bool:
        """Whether all measured numbers are within the bound."""
        return (
            (self.max_abs_diff is None or max_abs_diff <= self.max_abs_diff)
            and (self.min_cosine is None or min_cosine >= self.min_cosine)
            and (self.mean_cosine is None or mean_cosine >= self.mean_cosine)
        )

    def __str__(self) -> str:
        parts = []
        if self.max_abs_diff is not None:
            parts.append(f"max-abs <= {self.max_abs_diff:g}")
        if self.min_cosine is not None:
            parts.append(f"cosine >= {self.min_cosine:g}")
        if self.mean_cosine is not None:
            parts.append(f"mean cosine >= {self.mean_cosine:g}")
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
    """The measured difference between an exported encoder and its eager original.

    Attributes:
        max_abs_diff, min_cosine: the worst of all cases.
        mean_cosine: of the rows of all cases.
    """

    bound: ParityBound
    max_abs_diff: float
    min_cosine: float
    mean_cosine: float
    cases: tuple[ParityCase, ...]
    golden: Golden

    @property
    def holds(self) -> bool:
        """Whether it is within its bound."""
        return self.bound.holds(self.max_abs_diff, self.min_cosine, self.mean_cosine)

    def __str__(self) -> str:
        mean = "" if self.bound.mean_cosine is None else f", mean {self.mean_cosine:.6f}"
        return f"max-abs {self.max_abs_diff:.2g}, min cosine {self.min_cosine:.6f}{mean}"
