"""The HTTP bodies: from a request's bytes to items, from embeddings to a response's bytes.

Requests (`input`, `encoding_format` and the response's `data` are those of the OpenAI and Jina APIs):

```
text        {"input": "text" | ["…", …], "encoding_format": "float" | "base64"}      or text/plain
image       {"input": [{"image": "<base64 or data: URI>"} | "<base64 …>", …]}    or raw bytes, or multipart
similarity  {"images": […], "texts": […]} or {"images": […], "labels": […], "template": "a photo of {}"}
            or multipart: any number of files, and a field `texts` or `labels` (JSON list), `template`
```

A wrong item becomes a `RequestError` in its place; a wrong request raises one. No URL is ever fetched.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from clipserve.encoder_spec import EncoderSpec, FloatArray, encode_vector
from clipserve.errors import RequestError

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
MAX_JSON_DEPTH = 32
JSON_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
BRACKET = re.compile(r"[\[{\]}]")

ItemT = TypeVar("ItemT")
EncodingFormat = Literal["float", "base64"]


@dataclass(frozen=True)
class RequestLimits:
    """How much one request may ask for.

    Attributes:
        max_items: pictures or texts of an embedding request; pictures of a similarity request.
        max_texts: texts or labels of a similarity request.
        max_characters: of one text; far more than any context length, a bound on tokenising time.
    """

    max_items: int = 128
    max_texts: int = 1000
    max_characters: int = 20_000


@dataclass(frozen=True)
class Row:
    """One HTTP request as a server hands it over.

    Attributes:
        body: the raw body; empty for multipart.
        content_type: of the request, in lower case, without parameters.
        parts: the parts of a multipart request, by field name.
    """

    body: bytes
    content_type: str
    parts: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the body or of all parts."""
        return len(self.body) + sum(map(len, self.parts.values()))


@dataclass(frozen=True)
class Reply:
    """One HTTP response: status, JSON body."""

    status: int
    body: bytes
    content_type: str = JSON


@dataclass(frozen=True)
class EmbeddingRequest(Generic[ItemT]):
    """A parsed embedding request: its items, each well-formed or a `RequestError`."""

    items: list[ItemT | RequestError]
    encoding_format: EncodingFormat


@dataclass(frozen=True)
class SimilarityRequest:
    """A parsed similarity request: encoded pictures, and texts with the template filled in."""

    images: list[bytes | RequestError]
    texts: list[str | RequestError]


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


# ---------------------------------------------------------------------------------------------------
# Requests


def media_type(header: str) -> str:
    """The type in a Content-Type header: in lower case, without parameters; empty where there is none."""
    return header.partition(";")[0].strip().lower()


def parse_text_request(row: Row, limits: RequestLimits) -> EmbeddingRequest[str]:
    """Reads a `clip_text` request.

    Raises:
        RequestError: the request as a whole is wrong.
    """
    if row.content_type != JSON:
        _refuse_form(row)
        if not row.body:
            raise RequestError("empty_request", "the request has no body; send a text")
        return EmbeddingRequest([_text_item(_utf8(row.body), limits)], "float")
    body = json_object(row.body, {"input", "encoding_format", "model"})
    items = _item_list(body, "input", str, limits.max_items)
    return EmbeddingRequest(
        [_text_item(item, limits) for item in items], _encoding_format(body.get("encoding_format"))
    )


def parse_image_request(row: Row, limits: RequestLimits) -> EmbeddingRequest[bytes]:
    """Reads a `clip_image` request.

    Raises:
        RequestError: the request as a whole is wrong.
    """
    if row.parts:
        _check_count("files", len(row.parts), limits.max_items)
        return EmbeddingRequest(list(row.parts.values()), "float")
    if row.content_type != JSON:
        _refuse_form(row)
        if not row.body:
            raise RequestError("empty_request", "the request has no body; send a picture's bytes")
        return EmbeddingRequest([row.body], "float")
    body = json_object(row.body, {"input", "encoding_format", "model"})
    items = _item_list(body, "input", (str, dict), limits.max_items)
    return EmbeddingRequest(
        [_image_item(item) for item in items], _encoding_format(body.get("encoding_format"))
    )


def parse_similarity_request(row: Row, limits: RequestLimits) -> SimilarityRequest:
    """Reads a `clip_similarity` request.

    Raises:
        RequestError: the request as a whole is wrong.
    """
    images: list[bytes | RequestError]
    if row.parts:
        fields = {"texts", "labels", "template"}
        body = {
            name: _utf8(part) if name == "template" else _json(part, f"field {name!r}")
            for name, part in row.parts.items()
            if name in fields
        }
        images = [part for name, part in row.parts.items() if name not in fields]
        _check_count("files", len(images), limits.max_items)
    elif row.content_type == JSON:
        body = json_object(row.body, {"images", "texts", "labels", "template", "model"})
        images = [_image_item(i) for i in _item_list(body, "images", (str, dict), limits.max_items)]
    else:
        _refuse_form(row)
        raise RequestError(
            "unsupported_media_type",
            f"content type {shown(row.content_type or 'none')}; send application/json or multipart/form-data",
            415,
        )
    template = body.get("template")
    if "texts" in body and "labels" in body:
        raise RequestError("invalid_request", "both 'texts' and 'labels' are given; send one")
    if "labels" not in body:
        if template is not None:
            raise RequestError("invalid_request", "'template' goes with 'labels', not with 'texts'")
        texts = _item_list(body, "texts", str, limits.max_texts)
    else:
        template = "{}" if template is None else template
        if isinstance(template, str) and len(template) > limits.max_characters:
            # Before it is filled in, once for each label.
            raise RequestError(
                "text_too_long",
                f"'template' has {len(template)} characters, allowed are {limits.max_characters}",
                413,
            )
        if not isinstance(template, str) or template.count("{}") != 1:
            raise RequestError(
                "invalid_request", f"'template' is {shown(template)}, should be a text with one {{}}"
            )
        texts = [
            template.replace("{}", label) if isinstance(label, str) else label
            for label in _item_list(body, "labels", str, limits.max_texts)
        ]
    return SimilarityRequest(images, [_text_item(text, limits) for text in texts])


def _refuse_form(row: Row) -> None:
    if row.content_type in (FORM, MULTIPART):
        raise RequestError(
            "unsupported_media_type",
            f"content type {row.content_type!r} without a file; send the header "
            "'Content-Type: application/json' with a JSON body, or raw bytes",
            415,
        )


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError("invalid_encoding", f"the text is not UTF-8: {error}") from error


def _json(data: bytes, where: str) -> Any:
    text = _utf8(data)

    def no_constant(name: str) -> None:
        raise RequestError("invalid_json", f"{where} holds {name}, which is not JSON")

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise RequestError("invalid_json", f"{where} has the key {shown(key)} twice")
            found[key] = value
        return found

    # A request needs three levels. Counted before parsing: json's own guard is the recursion limit.
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _depth(text) > MAX_JSON_DEPTH:
        raise RequestError("invalid_json", f"{where} is nested deeper than {MAX_JSON_DEPTH} levels")
    try:
        return json.loads(text, parse_constant=no_constant, object_pairs_hook=no_duplicates)
    except ValueError as error:
        # Includes integers of more digits than Python converts.
        raise RequestError("invalid_json", f"{where} is not valid JSON: {error}") from error


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside of strings; exact for valid JSON."""
    depth = deepest = 0
    # Without its strings a request is short: a loop over megabytes of base64 would cost more than parsing.
    for bracket in BRACKET.findall(JSON_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def json_object(data: bytes, allowed: set[str]) -> dict[str, Any]:
    """Reads a body that is one JSON object of known fields.

    Raises:
        RequestError: it is not.
    """
    if not data:
        raise RequestError("empty_request", "the request has no body")
    body = _json(data, "the body")
    if not isinstance(body, dict):
        raise RequestError("invalid_request", f"the body is {shown(body)}, should be a JSON object")
    unknown = sorted(set(body) - allowed)
    if unknown:
        raise RequestError(
            "invalid_request",
            f"unknown field {shown(unknown[0])}; allowed are {', '.join(sorted(allowed))}",
        )
    return body


def _item_list(body: Mapping[str, Any], key: str, kinds: type | tuple[type, ...], limit: int) -> list[Any]:
    """The list under `key`; a single item stands for a list of one, a wrong item becomes its error."""
    if key not in body:
        raise RequestError("invalid_request", f"the field {key!r} is missing")
    value = body[key]
    items = [value] if isinstance(value, kinds) else value
    if not isinstance(items, list):
        raise RequestError("invalid_request", f"{key!r} is {shown(value)}, should be a list")
    _check_count(repr(key), len(items), limit)
    return [
        item
        if isinstance(item, kinds)
        else RequestError("invalid_item", f"an item of {key!r} is {shown(item)}")
        for item in items
    ]


def _check_count(what: str, count: int, limit: int) -> None:
    if count == 0:
        raise RequestError("empty_request", f"{what}: no items")
    if count > limit:
        raise RequestError("too_many_items", f"{what}: {count} items, allowed are {limit}", 413)


def _text_item(item: str | RequestError, limits: RequestLimits) -> str | RequestError:
    if isinstance(item, RequestError):
        return item
    if len(item) > limits.max_characters:
        return RequestError(
            "text_too_long",
            f"the text has {len(item)} characters, allowed are {limits.max_characters}",
            413,
        )
    if any("\ud800" <= char <= "\udfff" for char in item):
        return RequestError("invalid_encoding", "the text has a surrogate without its other half")
    return item


def _image_item(item: str | dict[str, Any] | RequestError) -> bytes | RequestError:
    if isinstance(item, RequestError):
        return item
    if isinstance(item, dict):
        if set(item) != {"image"} or not isinstance(item["image"], str):
            return RequestError("invalid_item", 'an image item should be {"image": "<base64 or data: URI>"}')
        item = item["image"]
    if item.startswith(("http://", "https://", "file://", "ftp://")):
        return RequestError(
            "url_not_fetched", "the image is a URL; no URL is ever fetched, send the bytes in base64"
        )
    if item.startswith("data:"):
        header, comma, item = item.partition(",")
        if not comma or not header.endswith(";base64"):
            return RequestError("invalid_base64", "the data: URI is not base64")
    try:
        return base64.b64decode(item, validate=True)
    except (binascii.Error, ValueError) as error:
        return RequestError("invalid_base64", f"the image is not base64: {error}")


def _encoding_format(value: Any) -> EncodingFormat:
    if value in (None, "float"):
        return "float"
    if value == "base64":
        return "base64"
    raise RequestError(
        "invalid_request", f"'encoding_format' is {shown(value)}, allowed are 'float' and 'base64'"
    )


def shown(value: Any) -> str:
    """A value as it may stand in a message: short, and never a payload."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "…")
    if isinstance(value, bool | int | float) or value is None:
        return json.dumps(value)[:40]
    return "an object" if isinstance(value, dict) else "a list"


# ---------------------------------------------------------------------------------------------------
# Responses


def error_reply(error: RequestError) -> Reply:
    """The response to a request of which nothing could be answered."""
    return Reply(error.status, dump_json({"error": error.to_json()}))


def embedding_reply(
    spec: EncoderSpec, results: Sequence[Embedded | RequestError], encoding_format: EncodingFormat
) -> Reply:
    """The response to an embedding request; its items' first error when none succeeded."""
    errors = [r.at(i) for i, r in enumerate(results) if isinstance(r, RequestError)]
    if len(errors) == len(results):
        return error_reply(errors[0])
    data = [
        {"object": "error", "index": index, "error": result.to_json()}
        if isinstance(result, RequestError)
        else {
            "object": "embedding",
            "index": index,
            "embedding": encode_vector(result.embedding)
            if encoding_format == "base64"
            else result.embedding.tolist(),
        }
        for index, result in enumerate(results)
    ]
    body = {"object": "list", **_space(spec), "data": data, "usage": _usage(results)}
    return Reply(200, dump_json(body))


def similarity_reply(
    spec: EncoderSpec,
    images: Sequence[Embedded | RequestError],
    texts: Sequence[Embedded | RequestError],
) -> Reply:
    """The response to a similarity request.

    `cosine_similarity` and `probabilities` have a row for each image and a column for each text; null stands
    where the image or the text is in `errors`. The probabilities of a row are over its valid texts.
    """
    errors = [
        (kind, result.at(index))
        for kind, results in (("images", images), ("texts", texts))
        for index, result in enumerate(results)
        if isinstance(result, RequestError)
    ]
    valid_texts = [i for i, text in enumerate(texts) if isinstance(text, Embedded)]
    valid_images = [image for image in images if isinstance(image, Embedded)]
    if not valid_texts or not valid_images:
        return error_reply(errors[0][1])
    cosines = cosine_similarity(
        np.stack([image.embedding for image in valid_images]),
        np.stack([text.embedding for text in texts if isinstance(text, Embedded)]),
    )
    probabilities = softmax(spec.logit_scale * cosines)
    body = {
        "object": "similarity",
        **_space(spec),
        "cosine_similarity": _matrix(cosines, images, valid_texts, len(texts)),
        "probabilities": _matrix(probabilities, images, valid_texts, len(texts)),
        "logit_scale": spec.logit_scale,
        "errors": [{"input": kind, "error": error.to_json()} for kind, error in errors],
        "usage": _usage(texts),
    }
    return Reply(200, dump_json(body))


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


def _matrix(
    values: np.ndarray[Any, Any],
    images: Sequence[Embedded | RequestError],
    columns: Sequence[int],
    width: int,
) -> list[list[float | None] | None]:
    """Rows of `values` in the places of the valid images, its columns in those of the valid texts."""
    rows = iter(values.tolist())
    matrix: list[list[float | None] | None] = []
    for image in images:
        if isinstance(image, RequestError):
            matrix.append(None)
            continue
        row: list[float | None] = [None] * width
        for column, value in zip(columns, next(rows), strict=True):
            row[column] = value
        matrix.append(row)
    return matrix


def _space(spec: EncoderSpec) -> dict[str, Any]:
    return {
        "model": spec.model_id,
        "space_id": spec.space_id,
        "embedding_dim": spec.embedding_dim,
    }


def _usage(results: Sequence[Embedded | RequestError]) -> dict[str, int]:
    total = sum((r.usage for r in results if isinstance(r, Embedded)), Usage())
    return {
        "prompt_tokens": total.prompt_tokens,
        "truncated": total.truncated,
        "unknown_tokens": total.unknown_tokens,
    }


def dump_json(body: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """A JSON body as it is sent."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
