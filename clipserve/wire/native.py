"""Our own HTTP bodies: from a request's bytes to items, from embeddings to a response's bytes.

Requests (`input`, `encoding_format` and the response's `data` are those of the OpenAI and Jina APIs):

```
text        {"input": "text" | ["…", …], "encoding_format": "float" | "base64"}      or text/plain
image       {"input": [{"image": "<base64 or data: URI>"} | "<base64 …>", …]}    or raw bytes
            or multipart: files, and a field `encoding_format`
```

`clip_similarity`'s are in `similarity`.

A wrong item becomes a `RequestError` in its place; a wrong request raises one. No URL is ever fetched. Before
anything is parsed, its cost is bounded: every check here is a fixed number of passes over the body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipserve.encoder_spec import EncoderSpec, encode_vector
from clipserve.errors import RequestError
from clipserve.wire.json_input import (
    image_item,
    is_json,
    item_list,
    json_object,
    read_encoding_format,
    text_item,
    text_items,
    utf8,
)
from clipserve.wire.messages import (
    Embedded,
    EmbeddingRequest,
    EncodingFormat,
    Result,
    total_usage,
)
from clipserve.wire.rows import (
    JSON,
    MULTIPART,
    OCTETS,
    OPENS_OBJECT,
    Reply,
    RequestLimits,
    Row,
    has_json,
    read_form,
    refuse_form,
    shown,
)
from clipserve.wire.schemas import (
    ANY,
    ENCODING_FORMAT,
    ERROR,
    FILE,
    INTEGER,
    LIMITS,
    PICTURE,
    SPACE,
    TEXT,
    USAGE,
    VECTOR,
    Schema,
    closed,
    one_or_many,
)

# What editors and PowerShell on Windows begin UTF-8 with: a signature, no part of a text.
BYTE_ORDER_MARK = "\ufeff"


_BESIDE = {"encoding_format": ENCODING_FORMAT, "model": ANY}
TEXTS = closed({"input": one_or_many(TEXT, LIMITS.max_items), **_BESIDE}, ["input"])
IMAGES = closed({"input": one_or_many(PICTURE, LIMITS.max_items), **_BESIDE}, ["input"])
TEXT_BODIES: dict[str, Schema] = {JSON: TEXTS, "text/plain": TEXT}
IMAGE_BODIES: dict[str, Schema] = {JSON: IMAGES, OCTETS: ANY, MULTIPART: closed({"file": FILE})}
EMBEDDINGS = closed(
    {
        "object": {"const": "list"},
        **SPACE,
        "data": {
            "type": "array",
            "items": {
                "oneOf": [
                    closed({"object": {"const": "embedding"}, "index": INTEGER, "embedding": VECTOR}),
                    closed({"object": {"const": "error"}, "index": INTEGER, "error": ERROR}),
                ]
            },
        },
        "usage": USAGE,
    }
)


def decode_texts(row: Row, limits: RequestLimits) -> EmbeddingRequest[str]:
    """Reads a `clip_text` request.

    Raises:
        RequestError: the request as a whole is wrong.
    """
    if not has_json(row):
        refuse_form(row)
        text = utf8(row.body).removeprefix(BYTE_ORDER_MARK)
        if "\0" in text:
            raise RequestError(
                "invalid_encoding",
                f"the text has a zero byte at {row.body.index(0)}, as UTF-16 has; send the text in UTF-8",
            )
        if len(text) <= limits.max_characters and is_json(text):
            raise _mistyped(row)
        return EmbeddingRequest([text_item(text, limits)], "float")
    body = json_object(row.body, TEXTS["properties"].keys())
    items = text_items(item_list(body, "input", str, limits.max_items), limits)
    return EmbeddingRequest(items, read_encoding_format(body.get("encoding_format")))


def decode_images(row: Row, limits: RequestLimits) -> EmbeddingRequest[bytes]:
    """Reads a `clip_image` request.

    Raises:
        RequestError: the request as a whole is wrong.
    """
    if has_json(row):
        body = json_object(row.body, IMAGES["properties"].keys())
        items = item_list(body, "input", (str, dict), limits.max_items)
        return EmbeddingRequest(
            [image_item(item) for item in items], read_encoding_format(body.get("encoding_format"))
        )
    if row.parts:
        fields, files = read_form(row, {"encoding_format", "model"}, limits)
        form = {name: utf8(part) for name, part in fields.items()}
        return EmbeddingRequest([*files], read_encoding_format(form.get("encoding_format")))
    refuse_form(row)
    if OPENS_OBJECT.match(row.body):
        raise _mistyped(row)
    return EmbeddingRequest([row.body], "float")


def _mistyped(row: Row) -> RequestError:
    return RequestError(
        "unsupported_media_type",
        f"the body is JSON, but the content type is {shown(row.content_type or 'none')}; send the header "
        "'Content-Type: application/json'",
        415,
    )


# Responses


def encode_error(error: RequestError) -> Reply:
    """The response to a request of which nothing could be answered."""
    return Reply.json(error.status, {"error": error.to_json()})


def encode_embeddings(
    spec: EncoderSpec, request: EmbeddingRequest[Any], results: Sequence[Sequence[Result]]
) -> Reply:
    """The response to an embedding request; its items' first error when none succeeded."""
    (items,) = results
    errors = [r.at(i) for i, r in enumerate(items) if isinstance(r, RequestError)]
    if len(errors) == len(items):
        return encode_error(errors[0])
    data = [
        {"object": "error", "index": index, "error": result.to_json()}
        if isinstance(result, RequestError)
        else _embedding_entry(index, result, request.encoding_format)
        for index, result in enumerate(items)
    ]
    return Reply.json(
        200, {"object": "list", **space_fields(spec), "data": data, "usage": usage_fields(items)}
    )


def _embedding_entry(index: int, embedded: Embedded, encoding_format: EncodingFormat) -> dict[str, Any]:
    vector = embedded.embedding
    written = encode_vector(vector) if encoding_format == "base64" else vector
    return {"object": "embedding", "index": index, "embedding": written}


def space_fields(spec: EncoderSpec) -> dict[str, Any]:
    """Which model and which space, in every response."""
    return {
        "model": spec.model_id,
        "space_id": spec.space_id,
        "embedding_dim": spec.embedding_dim,
    }


def usage_fields(results: Sequence[Result]) -> dict[str, int]:
    """What the texts of a request cost together."""
    total = total_usage(results)
    return {
        "prompt_tokens": total.prompt_tokens,
        "truncated": total.truncated,
        "unknown_tokens": total.unknown_tokens,
    }
