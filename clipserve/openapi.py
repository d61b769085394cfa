"""The endpoints as an OpenAPI 3.1 document: `python -m clipserve.openapi` prints `docs/openapi.json`.

It is made of what the servers obey: the table of endpoints, their limits, the fields and types that the wire
functions know. What TorchServe has not stands below the tag `Ray Serve`.
"""

from __future__ import annotations

import json
import sys
from typing import Any, get_args

from clipserve import __version__
from clipserve.encoder_spec import ScoreKind
from clipserve.endpoints import ENDPOINTS
from clipserve.wire import openai
from clipserve.wire.messages import EncodingFormat
from clipserve.wire.rows import JSON, MULTIPART, OCTETS, RequestLimits

Schema = dict[str, Any]

LIMITS = RequestLimits()
RAY_ONLY = "Ray Serve"

# A picture of one pixel, so that an example can be sent as it stands.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"

TEXT: Schema = {"type": "string", "maxLength": LIMITS.max_characters}
ENCODED: Schema = {"type": "string", "description": "base64 or a base64 data: URI; no URL is fetched"}
PICTURE: Schema = {
    "oneOf": [
        ENCODED,
        {
            "type": "object",
            "properties": {"image": ENCODED},
            "required": ["image"],
            "additionalProperties": False,
        },
    ]
}
NUMBERS: Schema = {"type": "array", "items": {"type": "number"}}
INTEGER: Schema = {"type": "integer", "minimum": 0}
STRING: Schema = {"type": "string"}


def _one_or_many(item: Schema, most: int) -> Schema:
    return {"oneOf": [item, {"type": "array", "items": item, "minItems": 1, "maxItems": most}]}


def _choice(values: tuple[Any, ...]) -> Schema:
    return {"enum": [*values, None]}


def _object(properties: dict[str, Schema], required: tuple[str, ...] = (), *, closed: bool = True) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [*required],
        **({"additionalProperties": False} if closed else {}),
    }


ENCODING_FORMAT = _choice(get_args(EncodingFormat))

# What a request's JSON may be.
REQUESTS: dict[str, Schema] = {
    "clip_text": _object(
        {"input": _one_or_many(TEXT, LIMITS.max_items), "encoding_format": ENCODING_FORMAT, "model": {}},
        ("input",),
    ),
    "clip_image": _object(
        {"input": _one_or_many(PICTURE, LIMITS.max_items), "encoding_format": ENCODING_FORMAT, "model": {}},
        ("input",),
    ),
    "clip_similarity": {
        **_object(
            {
                "images": _one_or_many(PICTURE, LIMITS.max_items),
                "texts": _one_or_many(TEXT, LIMITS.max_texts),
                "labels": _one_or_many(TEXT, LIMITS.max_texts),
                "template": {
                    "type": ["string", "null"],
                    "pattern": r"\{\}",
                    "maxLength": LIMITS.max_characters,
                },
                "score": _choice(get_args(ScoreKind)),
                "model": {},
            },
            ("images",),
        ),
        "oneOf": [{"required": ["texts"]}, {"required": ["labels"]}],
    },
    "v1": {
        **_object(
            {
                **{name: {"$ref": "#/components/schemas/Items"} for name in openai.SOURCES[:2]},
                "messages": {
                    "type": "array",
                    "items": {"$ref": "#/components/schemas/Content"},
                    "minItems": 1,
                    "maxItems": 1,
                },
                "model": {"type": ["string", "null"], "description": "what is served, else 404"},
                "modality": _choice(openai.MODALITIES),
                "encoding_format": ENCODING_FORMAT,
                "embedding_types": {
                    "type": ["array", "null"],
                    "items": {"enum": [*openai.TYPES]},
                    "minItems": 1,
                    "uniqueItems": True,
                },
                "dimensions": {"type": ["integer", "null"], "description": "the model's own, or 0"},
                **{name: {"type": ["string", "null"]} for name in ("input_type", "user")},
            }
        ),
        "oneOf": [{"required": [name]} for name in openai.SOURCES],
    },
}
BODIES: dict[str, dict[str, Schema]] = {
    "clip_text": {"text/plain": TEXT},
    "clip_image": {
        OCTETS: {},
        MULTIPART: _object({"file": {"type": "string", "contentMediaType": OCTETS}}, ("file",)),
    },
    "clip_similarity": {
        MULTIPART: _object(
            {
                "file": {"type": "string", "contentMediaType": OCTETS},
                "texts": {"type": "string", "description": "a JSON list"},
            },
            ("file", "texts"),
        )
    },
    "v1": {},
}
SPACE = {"model": STRING, "space_id": STRING, "embedding_dim": INTEGER}
USAGE = _object(dict.fromkeys(("prompt_tokens", "truncated", "unknown_tokens"), INTEGER))
MATRIX: Schema = {
    "type": "array",
    "items": {"type": ["array", "null"], "items": {"type": ["number", "null"]}},
}
ANSWERS: dict[str, str] = {
    "clip_text": "Embeddings",
    "clip_image": "Embeddings",
    "clip_similarity": "Similarity",
    "v1": "OpenAIEmbeddings",
}
ERROR = _object({"code": STRING, "message": STRING, "index": INTEGER}, ("code", "message"))
VECTOR: Schema = {"oneOf": [NUMBERS, STRING]}
PART: Schema = {
    "oneOf": [
        TEXT,
        _object({"text": TEXT, "type": {"const": "text"}}, ("text",)),
        _object({"image": ENCODED}, ("image",)),
        _object(
            {
                "type": {"const": "image_url"},
                "image_url": {
                    "oneOf": [ENCODED, _object({"url": ENCODED, "detail": {}}, ("url",))],
                },
            },
            ("type", "image_url"),
        ),
    ]
}
SCHEMAS: dict[str, Schema] = {
    "Part": PART,
    "Content": _object(
        {
            "role": {},
            "content": {
                "oneOf": [
                    {"$ref": "#/components/schemas/Part"},
                    {
                        "type": "array",
                        "items": {"$ref": "#/components/schemas/Part"},
                        "minItems": 1,
                        "maxItems": 1,
                    },
                ]
            },
        },
        ("content",),
    ),
    "Items": _one_or_many(
        {"oneOf": [{"$ref": "#/components/schemas/Part"}, {"$ref": "#/components/schemas/Content"}]},
        LIMITS.max_items,
    ),
    "Error": _object({"error": ERROR}, ("error",)),
    # TorchServe's own, of a token that is missing or wrong, a full queue or a worker that died.
    "TorchServeError": _object(
        {"code": INTEGER, "type": STRING, "message": STRING}, ("code", "type", "message")
    ),
    "OpenAIError": _object(
        {
            "error": _object(
                {"message": STRING, "type": STRING, "param": {"type": ["string", "null"]}, "code": STRING},
                ("message", "type", "param", "code"),
            )
        },
        ("error",),
    ),
    "Embeddings": _object(
        {
            "object": {"const": "list"},
            **SPACE,
            "data": {
                "type": "array",
                "items": {
                    "oneOf": [
                        _object(
                            {"object": {"const": "embedding"}, "index": INTEGER, "embedding": VECTOR},
                            ("object", "index", "embedding"),
                        ),
                        _object(
                            {"object": {"const": "error"}, "index": INTEGER, "error": ERROR},
                            ("object", "index", "error"),
                        ),
                    ]
                },
            },
            "usage": USAGE,
        },
        ("object", *SPACE, "data", "usage"),
    ),
    "OpenAIEmbeddings": _object(
        {
            "object": {"const": "list"},
            "model": STRING,
            "space_id": STRING,
            "data": {
                "type": "array",
                "items": _object(
                    {
                        "object": {"const": "embedding"},
                        "index": INTEGER,
                        "embedding": {
                            "oneOf": [
                                *VECTOR["oneOf"],
                                _object(dict.fromkeys(openai.TYPES, VECTOR)),
                            ]
                        },
                    },
                    ("object", "index", "embedding"),
                ),
            },
            "usage": _object(dict.fromkeys(("prompt_tokens", "total_tokens"), INTEGER)),
        },
        ("object", "model", "space_id", "data", "usage"),
    ),
    "Similarity": _object(
        {
            "object": {"const": "similarity"},
            **SPACE,
            "cosine_similarity": MATRIX,
            "probabilities": MATRIX,
            "score": {"enum": [*get_args(ScoreKind)]},
            "logit_scale": {"type": "number"},
            "logit_bias": {"type": "number"},
            "errors": {
                "type": "array",
                "items": _object(
                    {"input": {"enum": ["images", "texts"]}, "error": ERROR}, ("input", "error")
                ),
            },
            "usage": USAGE,
        },
        (
            "object",
            *SPACE,
            "cosine_similarity",
            "probabilities",
            "score",
            "logit_scale",
            "logit_bias",
            "errors",
        ),
    ),
    "Model": _object(
        {"id": STRING, "object": {"const": "model"}, "created": INTEGER, "owned_by": STRING},
        ("id", "object", "created", "owned_by"),
    ),
    "Models": _object(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
        },
        ("object", "data"),
    ),
}

# Why a request may be refused.
REFUSALS = {
    "400": "the body, an item or the token is wrong",
    "401": "the token is missing or wrong (below /v1)",
    "404": "no such model",
    "408": "the body did not arrive in time (Ray Serve)",
    "413": "beyond a limit",
    "415": "another type, charset or format",
    "422": "an item without an embedding",
    "500": "a form that TorchServe's frontend cannot read, or a worker that died",
    "503": "ask again",
    "507": "no memory",
}


def document() -> Schema:
    """The document, as JSON values."""
    paths = {f"/predictions/{_path(name)}": {"post": _operation(name)} for name in ENDPOINTS}
    openai_only = _operation("v1") | {"operationId": "embeddings", "tags": [RAY_ONLY]}
    model: Schema = {"name": "model", "in": "path", "required": True, "schema": STRING}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "clipserve",
            "version": __version__,
            "summary": "Embeddings of pictures and texts in one space, and how alike they are.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"token": []}],
        "paths": {
            **paths,
            "/v1/embeddings": {"post": openai_only},
            "/v1/models": {"get": _read("models", "The one model that is served.", "Models")},
            "/v1/models/{model}": {
                "parameters": [model],
                "get": _read("model", "The model of that id.", "Model"),
            },
        },
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _path(name: str) -> str:
    version = ENDPOINTS[name].version
    return name if version is None else f"{name}/{version}"


def _operation(name: str) -> Schema:
    example = ENDPOINTS[name].example({"image": [PNG], "text": ["két kutya a hóban"]})
    content: dict[str, Schema] = {JSON: {"schema": REQUESTS[name], "example": example}}
    content |= {media_type: {"schema": schema} for media_type, schema in BODIES[name].items()}
    return {
        "operationId": name,
        "tags": ["both servers"],
        "summary": f"{' and '.join(ENDPOINTS[name].modalities)} in, {ANSWERS[name]} out",
        "requestBody": {"required": True, "content": content},
        "responses": _responses(ANSWERS[name]),
    }


def _read(name: str, summary: str, schema: str) -> Schema:
    return {
        "operationId": name,
        "tags": [RAY_ONLY],
        "summary": summary,
        "responses": _responses(schema),
    }


def _responses(answer: str) -> Schema:
    refused = "Error" if answer in ("Embeddings", "Similarity") else "OpenAIError"
    either = {"oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in (refused, "TorchServeError")]}
    return {
        "200": {
            "description": "the answer",
            "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{answer}"}}},
        },
        **{
            status: {"description": why, "content": {JSON: {"schema": either}}}
            for status, why in REFUSALS.items()
        },
    }


def text() -> str:
    """The document as it lies in `docs/openapi.json`."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
