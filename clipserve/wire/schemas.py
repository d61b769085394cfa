"""What bodies share, as JSON Schema: the wire modules say with it what they read and write.

The fields that a request may have are the properties of its schema; `clipserve.openapi` makes a document of
all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from clipserve.wire.messages import EncodingFormat
from clipserve.wire.rows import OCTETS, RequestLimits

Schema = dict[str, Any]

LIMITS = RequestLimits()


def one_or_many(item: Schema, most: int) -> Schema:
    """An item, or a list of so many at most."""
    return {"oneOf": [item, {"type": "array", "items": item, "minItems": 1, "maxItems": most}]}


def choice(values: Sequence[Any]) -> Schema:
    """One of these, or nothing said."""
    return {"enum": [*values, None]}


def closed(properties: Mapping[str, Schema], required: Sequence[str] | None = None) -> Schema:
    """An object of these properties and no others; all are required where it is not said which."""
    return {
        "type": "object",
        "properties": {**properties},
        "required": [*(properties if required is None else required)],
        "additionalProperties": False,
    }


STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
TEXT: Schema = {"type": "string", "maxLength": LIMITS.max_characters}
ENCODED: Schema = {"type": "string", "description": "base64 or a base64 data: URI; no URL is fetched"}
PICTURE: Schema = {"oneOf": [ENCODED, closed({"image": ENCODED})]}
FILE: Schema = {"type": "string", "contentMediaType": OCTETS}
ENCODING_FORMAT = choice(get_args(EncodingFormat))
ANY: Schema = {}

VECTOR: Schema = {"oneOf": [{"type": "array", "items": NUMBER}, STRING]}
# Which embeddings may be compared.
SPACE: dict[str, Schema] = {"model": STRING, "space_id": STRING, "embedding_dim": INTEGER}
# What an endpoint says of itself.
DESCRIPTION = closed(
    {
        "object": {"const": "endpoint"},
        "method": {"const": "POST"},
        "content_types": {"type": "array", "items": STRING},
        "example": {"type": "object", "description": "a body in JSON, its items to be filled in"},
        "limits": {"type": "object", "additionalProperties": INTEGER, "description": "items of a request"},
        **SPACE,
        "document": STRING,
    }
)
USAGE = closed(dict.fromkeys(("prompt_tokens", "truncated", "unknown_tokens"), INTEGER))
ERROR = closed({"code": STRING, "message": STRING, "index": INTEGER}, ["code", "message"])
REFUSAL = closed({"error": ERROR})
