"""The HTTP bodies: from a request's bytes to items, from embeddings to a response's bytes.

Requests (`input`, `encoding_format` and the response's `data` are those of the OpenAI and Jina APIs):

```
text        {"input": "text" | ["…", …], "encoding_format": "float" | "base64"}      or text/plain
image       {"input": [{"image": "<base64 or data: URI>"} | "<base64 …>", …]}    or raw bytes
            or multipart: files, and a field `encoding_format`
similarity  {"images": […], "texts": […]} or {"images": […], "labels": […], "template": "a photo of {}"}
            or multipart: files, and a field `texts` or `labels` (JSON list), `template`
```

A wrong item becomes a `RequestError` in its place; a wrong request raises one. No URL is ever fetched. Before
anything is parsed, its cost is bounded: every check here is a fixed number of passes over the body.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from clipserve.encoder_spec import EncoderSpec, FloatArray, encode_vector
from clipserve.errors import RequestError

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
OCTETS = "application/octet-stream"
# Beside every type that ends in +json (RFC 6839): what JSON was called before it had a name, and is still.
JSON_TYPES = frozenset({JSON, "application/x-json", "text/json", "text/x-json"})
UTF8_NAMES = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})

MAX_JSON_DEPTH = 32
# Lists, objects, and what stands in them. A request of 1,000 texts has some 1,000; OpenAI's clients send
# texts as lists of tokens, which get an answer of their own.
MAX_JSON_VALUES = 250_000
# Of an integer. Python's own limit, but it is a setting of the interpreter's.
MAX_JSON_DIGITS = 4300
# What has more is no double's: its value matters to nobody, and reading it costs the square of its digits.
EXACT_JSON_DIGITS = 309
# The endpoints' own limits on items are lower.
MAX_PARTS = 2000

BRACKET = re.compile(r"[\[{\]}]")
SURROGATE = re.compile("[\ud800-\udfff]")
OPENS_OBJECT = re.compile(rb"\s*\{")
NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=_\s-]")
URL_SAFE_BASE64 = bytes.maketrans(b"-_", b"+/")

ItemT = TypeVar("ItemT")
EncodingFormat = Literal["float", "base64"]


@dataclass(frozen=True)
class RequestLimits:
    """How much one request may ask for.

    Attributes:
        max_items: pictures or texts of an embedding request; pictures of a similarity request.
        max_texts: texts or labels of a similarity request.
        max_characters: of one text; far more than any context length, a bound on tokenising time.
        max_total_characters: of all texts of a request together, each label in its template: 1,000 texts of
            500. A full-size CLIP tokenizer takes 10 µs for each of the slowest characters.
    """

    max_items: int = 128
    max_texts: int = 1000
    max_characters: int = 20_000
    max_total_characters: int = 500_000


@dataclass(frozen=True)
class Part:
    """One part of a multipart request.

    Attributes:
        name: of its field; several parts may have one name.
        content: as it came.
        content_type: of a file, as sent or as the server completes it; None for a field, which has no file
            name.
    """

    name: str
    content: bytes
    content_type: str | None = None


@dataclass(frozen=True)
class Row:
    """One HTTP request as a server hands it over.

    Attributes:
        body: the raw body; empty for multipart.
        content_type: the header of that name as it was sent; empty where there is none.
        parts: all parts of a multipart request, in their order.
        content_encoding: the header of that name as it was sent; empty where there is none.
    """

    body: bytes
    content_type: str
    parts: Sequence[Part] = ()
    content_encoding: str = ""

    @property
    def size(self) -> int:
        """Bytes of the body or of all parts."""
        return len(self.body) + sum(len(part.content) for part in self.parts)


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


def check_head(content_type: str, content_encoding: str) -> None:
    """Checks what the headers say of how a body is to be read.

    Raises:
        RequestError: it is compressed, or its text is in another charset than UTF-8.
    """
    if content_encoding.strip().lower() not in ("", "identity"):
        raise RequestError(
            "unsupported_media_type",
            f"Content-Encoding is {shown(content_encoding)}; send the body as it is, without that header",
            415,
        )
    if not media_type(content_type).startswith("image/"):
        check_charset(content_type)


def check_charset(content_type: str) -> None:
    """Checks the charset of a request's or a part's type, if it names one.

    Raises:
        RequestError: it is not UTF-8's, or the part of it that is ASCII.
    """
    # No split within quotes: neither a charset nor a boundary may hold a semicolon.
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        charset = value.strip().strip("\"'").lower()
        if name.strip().lower() == "charset" and charset not in UTF8_NAMES:
            raise RequestError(
                "unsupported_media_type", f"the charset is {shown(charset)}; send the text in UTF-8", 415
            )


def has_json(row: Row) -> bool:
    """Whether a request's body is to be read as JSON.

    It is where its type says so; without a type, or with that of any bytes, where it begins as an object, for
    no picture and hardly a text does (RFC 9110, 8.3, allows to look).

    Raises:
        RequestError: the body is compressed, or in another charset than UTF-8.
    """
    check_head(row.content_type, row.content_encoding)
    found = media_type(row.content_type)
    if found in JSON_TYPES or found.endswith("+json"):
        return True
    return found in ("", OCTETS) and OPENS_OBJECT.match(row.body) is not None


def parse_text_request(row: Row, limits: RequestLimits) -> EmbeddingRequest[str]:
    """Reads a `clip_text` request.

    Raises:
        RequestError: the request as a whole is wrong.
    """
    if not has_json(row):
        _refuse_form(row)
        if not row.body:
            raise RequestError("empty_request", "the request has no body; send a text")
        text = _utf8(row.body)
        if len(text) <= limits.max_characters and _is_json(text):
            raise _mistyped(row)
        return EmbeddingRequest([_text_item(text, limits)], "float")
    body = json_object(row.body, {"input", "encoding_format", "model"})
    items = _text_items(_item_list(body, "input", str, limits.max_items), limits)
    return EmbeddingRequest(items, _encoding_format(body.get("encoding_format")))


def parse_image_request(row: Row, limits: RequestLimits) -> EmbeddingRequest[bytes]:
    """Reads a `clip_image` request.

    Raises:
        RequestError: the request as a whole is wrong.
    """
    if has_json(row):
        body = json_object(row.body, {"input", "encoding_format", "model"})
        items = _item_list(body, "input", (str, dict), limits.max_items)
        return EmbeddingRequest(
            [_image_item(item) for item in items], _encoding_format(body.get("encoding_format"))
        )
    if row.parts:
        fields, files = _form(row, {"encoding_format", "model"}, limits)
        form = {name: _utf8(part) for name, part in fields.items()}
        return EmbeddingRequest([*files], _encoding_format(form.get("encoding_format")))
    _refuse_form(row)
    if not row.body:
        raise RequestError("empty_request", "the request has no body; send a picture's bytes")
    if OPENS_OBJECT.match(row.body):
        raise _mistyped(row)
    return EmbeddingRequest([row.body], "float")


def parse_similarity_request(row: Row, limits: RequestLimits) -> SimilarityRequest:
    """Reads a `clip_similarity` request.

    Raises:
        RequestError: the request as a whole is wrong.
    """
    images: list[bytes | RequestError]
    if has_json(row):
        body = json_object(row.body, {"images", "texts", "labels", "template", "model"})
        images = [_image_item(i) for i in _item_list(body, "images", (str, dict), limits.max_items)]
    elif row.parts:
        fields, files = _form(row, {"texts", "labels", "template", "model"}, limits)
        images = [*files]
        body = {
            name: _json(part, f"field {name!r}") if name in ("texts", "labels") else _utf8(part)
            for name, part in fields.items()
        }
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
        return SimilarityRequest(
            images, _text_items(_item_list(body, "texts", str, limits.max_texts), limits)
        )
    template = "{}" if template is None else template
    if isinstance(template, str) and len(template) > limits.max_characters:
        raise RequestError(
            "text_too_long",
            f"'template' has {len(template)} characters, allowed are {limits.max_characters}",
            413,
        )
    if not isinstance(template, str) or template.count("{}") != 1:
        raise RequestError(
            "invalid_request", f"'template' is {shown(template)}, should be a text with one {{}}"
        )
    labels = _item_list(body, "labels", str, limits.max_texts)
    return SimilarityRequest(images, _text_items(labels, limits, template))


def _form(row: Row, allowed: AbstractSet[str], limits: RequestLimits) -> tuple[dict[str, bytes], list[bytes]]:
    """The fields of a multipart request by name, and its files in their order.

    A name may be that of many files, as browsers send them, but of one field only: of two lists of texts one
    would be lost.

    Args:
        allowed: names of fields.
    """
    if len(row.parts) > MAX_PARTS:
        raise RequestError("too_many_items", f"{len(row.parts)} parts, allowed are {MAX_PARTS}", 413)
    fields: dict[str, bytes] = {}
    files: list[bytes] = []
    for part in row.parts:
        if part.name in allowed:
            if part.name in fields:
                raise RequestError("invalid_request", f"the field {part.name!r} is given twice")
            check_charset(part.content_type or "")
            fields[part.name] = part.content
        elif part.content_type is None:
            raise RequestError(
                "invalid_request",
                f"unknown field {shown(part.name)}; allowed are {', '.join(sorted(allowed))}, and pictures "
                "as files, which have a file name (curl: -F name=@FILE)",
            )
        else:
            files.append(part.content)
    _check_count("files", len(files), limits.max_items)
    return fields, files


def _refuse_form(row: Row) -> None:
    found = media_type(row.content_type)
    if found in (FORM, MULTIPART):
        raise RequestError(
            "unsupported_media_type",
            f"content type {found!r} without a file; send the header "
            "'Content-Type: application/json' with a JSON body, or raw bytes",
            415,
        )


def _is_json(text: str) -> bool:
    """Whether a text is a JSON object or list: a request under a wrong type, not something to embed."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        _parsed(text, "the body")
    except RequestError:
        return False
    return True


def _mistyped(row: Row) -> RequestError:
    return RequestError(
        "unsupported_media_type",
        f"the body is JSON, but the content type is {shown(row.content_type or 'none')}; send the header "
        "'Content-Type: application/json'",
        415,
    )


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError("invalid_encoding", f"the text is not UTF-8: {error}") from error


def _json(data: bytes, where: str) -> Any:
    return _parsed(_utf8(data), where)


def _parsed(text: str, where: str) -> Any:
    def no_constant(name: str) -> None:
        raise RequestError("invalid_json", f"{where} holds {name}, which is not JSON")

    def integer(digits: str) -> int | float:
        if len(digits) > MAX_JSON_DIGITS:
            raise RequestError("invalid_json", f"{where} holds a number of {len(digits)} digits")
        return int(digits) if len(digits) <= EXACT_JSON_DIGITS else float(digits)

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise RequestError("invalid_json", f"{where} has the key {shown(key)} twice")
            found[key] = value
        return found

    _check_structure(text, where)
    try:
        return json.loads(
            text, parse_constant=no_constant, parse_int=integer, object_pairs_hook=no_duplicates
        )
    except ValueError as error:
        raise RequestError("invalid_json", f"{where} is not valid JSON: {error}") from error


def _check_structure(text: str, where: str) -> None:
    """Bounds what parsing costs: json's own guard is the recursion limit, and it counts nothing.

    Exact for valid JSON; what is not may pass and fails in the parser.
    """
    if sum(map(text.count, "[{")) <= MAX_JSON_DEPTH and sum(map(text.count, "[{,")) <= MAX_JSON_VALUES:
        return
    # Texts may hold brackets and commas. Without its escapes a string ends at the next quote: pairs of
    # backslashes go first, so that what is left of each run tells whether the quote behind it is escaped.
    plain = text.replace("\\\\", "").replace('\\"', "")
    if plain.count('"') > 4 * MAX_JSON_VALUES:
        raise RequestError("invalid_json", f"{where} holds more than {2 * MAX_JSON_VALUES} strings")
    outside = "".join(plain.split('"')[::2])
    if sum(map(outside.count, "[{]}")) > 2 * MAX_JSON_VALUES:
        raise RequestError("invalid_json", f"{where} holds more than {MAX_JSON_VALUES} lists and objects")
    depth = 0
    for bracket in BRACKET.findall(outside):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_JSON_DEPTH:
            raise RequestError("invalid_json", f"{where} is nested deeper than {MAX_JSON_DEPTH} levels")
    if sum(map(outside.count, "[{,")) > MAX_JSON_VALUES:
        raise RequestError("too_many_items", f"{where} holds more than {MAX_JSON_VALUES} values", 413)


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


def _text_items(
    items: Sequence[str | RequestError], limits: RequestLimits, template: str = "{}"
) -> list[str | RequestError]:
    """Texts put into the template, each checked; their characters are counted before it is filled in."""
    total = sum(len(template) - 2 + len(item) for item in items if isinstance(item, str))
    if total > limits.max_total_characters:
        raise RequestError(
            "text_too_long",
            f"the texts have {total} characters together{' in their template' if template != '{}' else ''}, "
            f"allowed are {limits.max_total_characters}; send them in several requests",
            413,
        )
    return [
        item if isinstance(item, RequestError) else _text_item(template.replace("{}", item), limits)
        for item in items
    ]


def _text_item(item: str, limits: RequestLimits) -> str | RequestError:
    if len(item) > limits.max_characters:
        return RequestError(
            "text_too_long",
            f"the text has {len(item)} characters, allowed are {limits.max_characters}",
            413,
        )
    if SURROGATE.search(item):
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
    if item[:5].lower() == "data:":
        header, comma, item = item.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            return RequestError("invalid_base64", "the data: URI is not base64")
    try:
        return _decode_base64(item)
    except ValueError as error:
        wrong = NOT_BASE64.search(item)
        reason = f"{wrong[0]!r} at character {wrong.start() + 1} is none of its own" if wrong else error
        return RequestError("invalid_base64", f"the image is not base64: {reason}")


def _decode_base64(text: str) -> bytes:
    """Decodes base64, also in lines (MIME), of the URL-safe alphabet, or without its padding.

    Raises:
        ValueError: it is none of these.
    """
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        data = text.encode("ascii").translate(URL_SAFE_BASE64, b" \t\r\n")
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)


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
