"""OpenAI's `POST /v1/embeddings` and `GET /v1/models`: another shape of the `clip_text` endpoint's bodies.

What differs: `model` must name what is served, `dimensions` may only be the encoder's own, tokens of another
tokenizer mean nothing here, and one wrong item fails its request, for OpenAI's answer has no room for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipserve.encoder_spec import EncoderSpec
from clipserve.errors import RequestError
from clipserve.wire.json_input import item_list, json_object, read_encoding_format, text_items
from clipserve.wire.messages import Embedded, EmbeddingRequest, Result, total_usage
from clipserve.wire.native import embedding_entry
from clipserve.wire.rows import Reply, RequestLimits, Row, has_json, shown

FIELDS = {"input", "model", "encoding_format", "dimensions", "user"}


def decode(row: Row, limits: RequestLimits, spec: EncoderSpec) -> EmbeddingRequest[str]:
    """Reads a request.

    Args:
        row: the request as it came.
        limits: how much it may ask for.
        spec: of the encoder that is served.

    Raises:
        RequestError: the request as a whole is wrong.
    """
    if not has_json(row):
        raise RequestError(
            "unsupported_media_type",
            f"content type {shown(row.content_type or 'none')}; send application/json",
            415,
        )
    body = json_object(row.body, FIELDS)
    for name in ("model", "input"):
        if name not in body:
            raise RequestError("invalid_request", f"the field {name!r} is missing")
    check_model(body["model"], spec.model_id)
    dimensions = body.get("dimensions")
    # JSON's true equals 1 in Python.
    if dimensions is not None and (dimensions != spec.embedding_dim or isinstance(dimensions, bool)):
        raise RequestError(
            "invalid_request",
            f"'dimensions' is {shown(dimensions)}, but {spec.model_id!r} gives {spec.embedding_dim} and "
            "cannot be shortened; leave it out",
        )
    if _has_tokens(body["input"]):
        raise RequestError(
            "invalid_request",
            "'input' is an array of tokens, but the served model has a tokenizer of its own; send texts "
            "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
        )
    items = text_items(item_list(body, "input", str, limits.max_items), limits)
    return EmbeddingRequest(items, read_encoding_format(body.get("encoding_format")))


def _has_tokens(given: Any) -> bool:
    """Whether an input is a list of token numbers, or a list of such lists."""
    if not isinstance(given, list) or not given:
        return False
    first = given[0]
    if isinstance(first, list):
        return bool(first) and _has_tokens(first)
    return isinstance(first, int) and not isinstance(first, bool)


def encode(spec: EncoderSpec, request: EmbeddingRequest[str], results: Sequence[Sequence[Result]]) -> Reply:
    """The response to a request; its items' first error when one failed."""
    (items,) = results
    errors = [r.at(i) for i, r in enumerate(items) if isinstance(r, RequestError)]
    if errors:
        first = errors[0]
        status = first.status if len(errors) == len(items) else 400
        return encode_error(RequestError(first.code, first.message, status, first.index))
    embedded = [item for item in items if isinstance(item, Embedded)]
    tokens = total_usage(items).prompt_tokens
    body = {
        "object": "list",
        "data": [embedding_entry(i, item, request.encoding_format) for i, item in enumerate(embedded)],
        "model": spec.model_id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Reply.json(200, body)


def encode_error(error: RequestError) -> Reply:
    """An error as OpenAI words it."""
    param = None if error.index is None else f"input[{error.index}]"
    body = {
        "message": error.message if param is None else f"{param}: {error.message}",
        "type": "invalid_request_error" if error.status < 500 else "server_error",
        "param": param,
        "code": error.code,
    }
    return Reply.json(error.status, {"error": body})


def check_model(asked: Any, model: str) -> None:
    """Checks a model's id.

    Raises:
        RequestError: it is not that of the model that is served.
    """
    if asked != model:
        raise RequestError(
            "model_not_found", f"the model {shown(asked)} is not served here, but {model!r} is", 404
        )


def models_reply(model: str, created: int) -> Reply:
    """The answer to `GET /v1/models`; `created` is a Unix time in seconds."""
    return Reply.json(200, {"object": "list", "data": [_model(model, created)]})


def model_reply(asked: str, model: str, created: int) -> Reply:
    """The answer to `GET /v1/models/ID`.

    Raises:
        RequestError: `asked` is not what is served.
    """
    check_model(asked, model)
    return Reply.json(200, _model(model, created))


def _model(model: str, created: int) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": created, "owned_by": "clipserve"}
