"""The HTTP bodies: from a request's bytes to items, from embeddings to a response's bytes.

Requests (`input`, `encoding_format` and the response's `data` are those of the OpenAI and Jina APIs):

```
text        {"input": "text" | ["…", …], "encoding_format": "float" | "base64"}      or text/plain
image       {"input": [{"image": "<base64 or data: URI>"} | "<base64 …>", …]}    or raw bytes
            or multipart: files, and a field `encoding_format`
similarity  {"images": […], "texts": […]} or {"images": […], "labels": […], "template": "a photo of {}"}
            and "score": "softmax" | "sigmoid", other than the pair's own
            or multipart: files, and a field `texts` or `labels` (JSON list), `template`, `score`
```

A wrong item becomes a `RequestError` in its place; a wrong request raises one. No URL is ever fetched. Before
anything is parsed, its cost is bounded: every check here is a fixed number of passes over the body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from clipserve.encoder_spec import EncoderSpec, encode_vector
from clipserve.errors import RequestError
from clipserve.similarity import cosine_similarity, probabilities
from clipserve.wire.json_input import (
    image_item,
    is_json,
    item_list,
    json_object,
    read_encoding_format,
    read_json,
    read_score,
    text_item,
    text_items,
    utf8,
)
from clipserve.wire.messages import (
    Embedded,
    EmbeddingRequest,
    EncodingFormat,
    Result,
    SimilarityRequest,
    total_usage,
)
from clipserve.wire.rows import (
    OPENS_OBJECT,
    Reply,
    RequestLimits,
    Row,
    has_json,
    read_form,
    refuse_form,
    shown,
)

# What editors and PowerShell on Windows begin UTF-8 with: a signature, no part of a text.
BYTE_ORDER_MARK = "\ufeff"


def decode_texts(row: Row, limits: RequestLimits) -> EmbeddingRequest[str]:
    """Reads a `clip_text` request.

    Raises:
        RequestError: the request as a whole is wrong.
    """
    if not has_json(row):
        refuse_form(row)
        if not row.body:
            raise RequestError("empty_request", "the request has no body; send a text")
        text = utf8(row.body).removeprefix(BYTE_ORDER_MARK)
        if "\0" in text:
            raise RequestError(
                "invalid_encoding",
                f"the text has a zero byte at {row.body.index(0)}, as UTF-16 has; send the text in UTF-8",
            )
        if len(text) <= limits.max_characters and is_json(text):
            raise _mistyped(row)
        return EmbeddingRequest([text_item(text, limits)], "float")
    body = json_object(row.body, {"input", "encoding_format", "model"})
    items = text_items(item_list(body, "input", str, limits.max_items), limits)
    return EmbeddingRequest(items, read_encoding_format(body.get("encoding_format")))


def decode_images(row: Row, limits: RequestLimits) -> EmbeddingRequest[bytes]:
    """Reads a `clip_image` request.

    Raises:
        RequestError: the request as a whole is wrong.
    """
    if has_json(row):
        body = json_object(row.body, {"input", "encoding_format", "model"})
        items = item_list(body, "input", (str, dict), limits.max_items)
        return EmbeddingRequest(
            [image_item(item) for item in items], read_encoding_format(body.get("encoding_format"))
        )
    if row.parts:
        fields, files = read_form(row, {"encoding_format", "model"}, limits)
        form = {name: utf8(part) for name, part in fields.items()}
        return EmbeddingRequest([*files], read_encoding_format(form.get("encoding_format")))
    refuse_form(row)
    if not row.body:
        raise RequestError("empty_request", "the request has no body; send a picture's bytes")
    if OPENS_OBJECT.match(row.body):
        raise _mistyped(row)
    return EmbeddingRequest([row.body], "float")


def decode_similarity(row: Row, limits: RequestLimits) -> SimilarityRequest:
    """Reads a `clip_similarity` request.

    Raises:
        RequestError: the request as a whole is wrong.
    """
    images: list[bytes | RequestError]
    if has_json(row):
        body = json_object(row.body, {"images", "texts", "labels", "template", "score", "model"})
        images = [image_item(i) for i in item_list(body, "images", (str, dict), limits.max_items)]
    elif row.parts:
        fields, files = read_form(row, {"texts", "labels", "template", "score", "model"}, limits)
        images = [*files]
        body = {
            name: read_json(part, f"field {name!r}") if name in ("texts", "labels") else utf8(part)
            for name, part in fields.items()
        }
    else:
        refuse_form(row)
        raise RequestError(
            "unsupported_media_type",
            f"content type {shown(row.content_type or 'none')}; send application/json or multipart/form-data",
            415,
        )
    template, score = body.get("template"), read_score(body.get("score"))
    if "texts" in body and "labels" in body:
        raise RequestError("invalid_request", "both 'texts' and 'labels' are given; send one")
    if "labels" not in body:
        if template is not None:
            raise RequestError("invalid_request", "'template' goes with 'labels', not with 'texts'")
        texts = text_items(item_list(body, "texts", str, limits.max_texts), limits)
        return SimilarityRequest(images, texts, score)
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
    labels = item_list(body, "labels", str, limits.max_texts)
    return SimilarityRequest(images, text_items(labels, limits, template), score)


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
    return Reply.json(200, {"object": "list", **_space(spec), "data": data, "usage": _usage(items)})


def _embedding_entry(index: int, embedded: Embedded, encoding_format: EncodingFormat) -> dict[str, Any]:
    vector = embedded.embedding
    written = encode_vector(vector) if encoding_format == "base64" else vector
    return {"object": "embedding", "index": index, "embedding": written}


def encode_similarity(
    spec: EncoderSpec, request: SimilarityRequest, results: Sequence[Sequence[Result]]
) -> Reply:
    """The response to a similarity request.

    `cosine_similarity` and `probabilities` have a row for each image and a column for each text; null stands
    where the image or the text is in `errors`. A softmax is over the valid texts of its row.
    """
    images, texts = results
    errors = [
        (kind, result.at(index))
        for kind, of_kind in (("images", images), ("texts", texts))
        for index, result in enumerate(of_kind)
        if isinstance(result, RequestError)
    ]
    valid_texts = [i for i, text in enumerate(texts) if isinstance(text, Embedded)]
    valid_images = [image for image in images if isinstance(image, Embedded)]
    if not valid_texts or not valid_images:
        return encode_error(errors[0][1])
    cosines = cosine_similarity(
        np.stack([image.embedding for image in valid_images]),
        np.stack([text.embedding for text in texts if isinstance(text, Embedded)]),
    )
    score = replace(spec.score, kind=request.score or spec.score.kind)
    body = {
        "object": "similarity",
        **_space(spec),
        "cosine_similarity": _matrix(cosines, images, valid_texts, len(texts)),
        "probabilities": _matrix(probabilities(cosines, score), images, valid_texts, len(texts)),
        "score": score.kind,
        "logit_scale": score.scale,
        "logit_bias": score.bias,
        "errors": [{"input": kind, "error": error.to_json()} for kind, error in errors],
        "usage": _usage(texts),
    }
    return Reply.json(200, body)


def _matrix(
    values: np.ndarray[Any, Any],
    images: Sequence[Result],
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


def _usage(results: Sequence[Result]) -> dict[str, int]:
    total = total_usage(results)
    return {
        "prompt_tokens": total.prompt_tokens,
        "truncated": total.truncated,
        "unknown_tokens": total.unknown_tokens,
    }
