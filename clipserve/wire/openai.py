"""OpenAI's `POST /v1/embeddings` on top of the `clip_text` endpoint's own bodies.

A request becomes a `clip_text` row, so that it is batched with all others, and the reply becomes OpenAI's.
What differs: `model` must name what is served, `dimensions` may only be the encoder's own, tokens of another
tokenizer mean nothing here, and one wrong item fails its request, for OpenAI's answer has no room for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from clipserve.errors import RequestError
from clipserve.wire.json_input import json_object
from clipserve.wire.rows import JSON, Reply, Row, has_json, shown

FIELDS = {"input", "model", "encoding_format", "dimensions", "user"}


def text_row(asked: Row, model: str, embedding_dim: int) -> Row:
    """Turns a request into a row for the `clip_text` endpoint.

    Args:
        asked: the request as it came.
        model: id of the model that is served.
        embedding_dim: of its embeddings.

    Raises:
        RequestError: the request as a whole is wrong.
    """
    if not has_json(asked):
        raise RequestError(
            "unsupported_media_type",
            f"content type {shown(asked.content_type or 'none')}; send application/json",
            415,
        )
    body = json_object(asked.body, FIELDS)
    for name in ("model", "input"):
        if name not in body:
            raise RequestError("invalid_request", f"the field {name!r} is missing")
    if body["model"] != model:
        raise RequestError(
            "model_not_found", f"the model {shown(body['model'])} is not served here, but {model!r} is", 404
        )
    dimensions = body.get("dimensions")
    # JSON's true equals 1 in Python.
    if dimensions is not None and (dimensions != embedding_dim or isinstance(dimensions, bool)):
        raise RequestError(
            "invalid_request",
            f"'dimensions' is {shown(dimensions)}, but {model!r} gives {embedding_dim} and cannot be "
            "shortened; leave it out",
        )
    if _has_tokens(body["input"]):
        raise RequestError(
            "invalid_request",
            "'input' is an array of tokens, but the served model has a tokenizer of its own; send texts "
            "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
        )
    native = {"input": body["input"], "encoding_format": body.get("encoding_format")}
    # Escaped: half a surrogate pair is refused by the endpoint, but has no UTF-8.
    return Row(json.dumps(native).encode(), JSON)


def _has_tokens(given: Any) -> bool:
    """Whether an input is a list of token numbers, or a list of such lists."""
    if not isinstance(given, list) or not given:
        return False
    first = given[0]
    if isinstance(first, list):
        return bool(first) and _has_tokens(first)
    return isinstance(first, int) and not isinstance(first, bool)


def openai_reply(reply: Reply) -> Reply:
    """Turns the `clip_text` endpoint's reply into OpenAI's."""
    answer = json.loads(reply.body)
    errors = [answer["error"]] if "error" in answer else []
    data = answer.get("data", [])
    errors += [{**item["error"], "index": item["index"]} for item in data if "error" in item]
    if errors:
        status = reply.status if "error" in answer else 400
        return openai_error(status, errors[0])
    tokens = answer["usage"]["prompt_tokens"]
    body = {
        "object": "list",
        "data": answer["data"],
        "model": answer["model"],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Reply.json(200, body)


def openai_error(status: int, error: Mapping[str, Any]) -> Reply:
    """An error as OpenAI words it.

    Args:
        error: `code`, `message` and, for one item of the input, its `index`.
    """
    index = error.get("index")
    body = {
        "message": error["message"] if index is None else f"input[{index}]: {error['message']}",
        "type": "invalid_request_error" if status < 500 else "server_error",
        "param": None if index is None else f"input[{index}]",
        "code": error["code"],
    }
    return Reply.json(status, {"error": body})


def models_reply(model: str, created: int) -> Reply:
    """The answer to `GET /v1/models`; `created` is a Unix time in seconds."""
    return Reply.json(200, {"object": "list", "data": [_model(model, created)]})


def model_reply(asked: str, model: str, created: int) -> Reply:
    """The answer to `GET /v1/models/ID`.

    Raises:
        RequestError: `asked` is not what is served.
    """
    if asked != model:
        raise RequestError(
            "model_not_found", f"the model {shown(asked)} is not served here, but {model!r} is", 404
        )
    return Reply.json(200, _model(model, created))


def _model(model: str, created: int) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": created, "owned_by": "clipserve"}
