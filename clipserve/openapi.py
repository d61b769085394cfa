"""The endpoints as an OpenAPI 3.1 document: `python -m clipserve.openapi` prints `docs/openapi.json`.

It is made of what the servers obey: the table of endpoints, and what its wire functions say of their bodies.
What TorchServe has not stands below the tag `Ray Serve`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from clipserve import __version__
from clipserve.endpoints import ENDPOINTS, Endpoint
from clipserve.wire import openai
from clipserve.wire.rows import JSON
from clipserve.wire.schemas import DESCRIPTION, INTEGER, STRING, Schema, closed

BOTH, RAY_ONLY = "both servers", "Ray Serve"

# A picture of one pixel, so that an example can be sent as it stands.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"

# Of a token that is missing or wrong, a full queue or a worker that died.
TORCHSERVE_REFUSAL = closed({"code": INTEGER, "type": STRING, "message": STRING})

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


def document() -> dict[str, Any]:
    """The document, as JSON values."""
    model = {"name": "model", "in": "path", "required": True, "schema": STRING}
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
            **{f"/predictions/{of.path}": _operations(of, of.name, BOTH) for of in ENDPOINTS.values()},
            "/v1/embeddings": _operations(ENDPOINTS["v1"], "embeddings", RAY_ONLY),
            "/v1/models": {"get": _read("models", "The one model that is served.", openai.MODELS, "v1")},
            "/v1/models/{model}": {
                "parameters": [model],
                "get": _read("model", "The model of that id.", openai.MODEL, "v1"),
            },
        },
        "components": {
            "schemas": {
                "TorchServeRefusal": TORCHSERVE_REFUSAL,
                "description": DESCRIPTION,
                **{
                    f"{of.name}_{what}": schema
                    for of in ENDPOINTS.values()
                    for what, schema in (
                        ("request", of.bodies[JSON]),
                        ("answer", of.answer),
                        ("refusal", of.refusal),
                    )
                },
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operations(endpoint: Endpoint, name: str, tag: str) -> dict[str, dict[str, Any]]:
    told = "What it takes, and which model it has; TorchServe says as much in a 400."
    described = _read(f"describe_{name}", told, _named("description"), endpoint.name)
    return {"post": _asked(endpoint, name, tag), "get": described}


def _asked(endpoint: Endpoint, name: str, tag: str) -> dict[str, Any]:
    kind = endpoint.answer["properties"]["object"]["const"]
    example = endpoint.example({"image": [PNG], "text": ["két kutya a hóban"]})
    content: dict[str, dict[str, Any]] = {of: {"schema": body} for of, body in endpoint.bodies.items()}
    content[JSON] = {"schema": _named(f"{endpoint.name}_request"), "example": example}
    return {
        "operationId": name,
        "tags": [tag],
        "summary": f"{' and '.join(endpoint.modalities)} in, {kind} out",
        "requestBody": {"required": True, "content": content},
        "responses": _responses(_named(f"{endpoint.name}_answer"), endpoint.name),
    }


def _read(name: str, summary: str, answer: Schema, endpoint: str) -> dict[str, Any]:
    return {
        "operationId": name,
        "tags": [RAY_ONLY],
        "summary": summary,
        "responses": _responses(answer, endpoint),
    }


def _named(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _responses(answer: Schema, endpoint: str) -> dict[str, Any]:
    either = [_named(f"{endpoint}_refusal"), _named("TorchServeRefusal")]
    refused = {JSON: {"schema": {"oneOf": either}}}
    return {
        "200": {"description": "the answer", "content": {JSON: {"schema": answer}}},
        **{status: {"description": why, "content": refused} for status, why in REFUSALS.items()},
    }


def text() -> str:
    """The document as it lies in `docs/openapi.json`."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
