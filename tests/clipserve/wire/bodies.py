from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from clipserve.errors import RequestError
from clipserve.wire.messages import EmbeddingRequest
from clipserve.wire.native import (
    decode_images,
    decode_texts,
)
from clipserve.wire.rows import JSON, Part, RequestLimits, Row
from clipserve.wire.similarity import SimilarityRequest
from clipserve.wire.similarity import decode as decode_similarity

LIMITS = RequestLimits()

FORM = "application/x-www-form-urlencoded"

MULTIPART = "multipart/form-data"

PNG = b"\x89PNG\r\n\x1a\n\0\xff"

PNG_64 = base64.b64encode(PNG).decode()

Parse = Callable[[Row, RequestLimits], EmbeddingRequest[Any] | SimilarityRequest]

PARSERS: dict[str, Parse] = {
    "text": decode_texts,
    "image": decode_images,
    "similarity": decode_similarity,
}

# The field that holds the items, and a request around a value in it.
AROUND: dict[str, Callable[[Any], dict[str, Any]]] = {
    "text": lambda value: {"input": value},
    "image": lambda value: {"input": value},
    "similarity": lambda value: {"images": [PNG_64], "texts": value},
}


def json_row(value: Any) -> Row:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Row(body, JSON)


def form(*files: bytes, **fields: bytes) -> Row:
    """A multipart request: files of one name, then fields."""
    parts = [Part("file", content, "image/png") for content in files]
    return Row(b"", MULTIPART, [*parts, *(Part(name, content) for name, content in fields.items())])


def refused(parse: Parse, row: Row, limits: RequestLimits = LIMITS) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(row, limits)
    return caught.value


def assert_refused(parse: Parse, row: Row, code: str, status: int, *words: str) -> None:
    error = refused(parse, row)
    assert (error.code, error.status, error.index) == (code, status, None)
    for word in words:
        assert word in error.message


def items_of(request: EmbeddingRequest[Any] | SimilarityRequest) -> list[Any]:
    return request.items if isinstance(request, EmbeddingRequest) else [*request.images, *request.texts]


def codes(items: Sequence[Any]) -> list[Any]:
    """Items as they are, errors by code and status."""
    return [(i.code, i.status) if isinstance(i, RequestError) else i for i in items]


REQUEST = json.dumps({"input": ["a", "b"]}).encode()

ENDPOINTS = pytest.mark.parametrize("endpoint", PARSERS)


def outcome_of(parse: Parse, row: Row) -> EmbeddingRequest[Any] | SimilarityRequest | RequestError:
    """What a request comes to; anything raised but a `RequestError` fails the test."""
    try:
        return parse(row, LIMITS)
    except RequestError as error:
        return error


KNOWN_COSINES = [0.30857948, 0.10379046, 0.14382527]

KNOWN_PROBABILITIES = [0.9999999, 1.2768e-9, 6.9954e-8]
