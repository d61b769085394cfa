"""What every dialect decodes a request into, and encodes a reply from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from clipserve.encoder_spec import FloatArray
from clipserve.errors import RequestError

ItemT = TypeVar("ItemT")
EncodingFormat = Literal["float", "base64"]


class Request(Protocol):
    """What is to be embedded for one caller."""

    @property
    def inputs(self) -> Sequence[Sequence[Any]]:
        """Lists of pictures' bytes or of texts, each item well-formed or a `RequestError`."""


@dataclass(frozen=True)
class EmbeddingRequest(Generic[ItemT]):
    """A parsed embedding request: its items, each well-formed or a `RequestError`."""

    items: list[ItemT | RequestError]
    encoding_format: EncodingFormat

    @property
    def inputs(self) -> Sequence[Sequence[Any]]:
        """The items."""
        return [self.items]


@dataclass(frozen=True)
class Usage:
    """What a text cost: tokens after truncation, whether it was truncated, tokens not in the vocabulary."""

    prompt_tokens: int = 0
    truncated: int = 0
    unknown_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.truncated + other.truncated,
            self.unknown_tokens + other.unknown_tokens,
        )


@dataclass(frozen=True)
class Embedded:
    """One item's result: float32 `[D]` and what it cost."""

    embedding: FloatArray
    usage: Usage = Usage()


Result = Embedded | RequestError


def total_usage(results: Sequence[Result]) -> Usage:
    """What the items of a request cost together."""
    return sum((result.usage for result in results if isinstance(result, Embedded)), Usage())
