"""Who asks an endpoint with GET, or with nothing, is told how to ask it."""

from __future__ import annotations

import json

import pytest

from clipserve.endpoints import ENDPOINTS
from tests.http.api import JSON, Api, b64, picture

MODEL, DIM = "clip", 32


@pytest.mark.torchserve_only("Ray Serve knows a GET from a request without a body")
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("name", ENDPOINTS)
def test_a_request_without_a_body(api: Api, method: str, name: str) -> None:
    endpoint = ENDPOINTS[name]
    response = api.inference(method, f"/predictions/{endpoint.path}")
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "empty_request")
    for words in ("POST", *endpoint.bodies, MODEL, f"gives {DIM} numbers"):
        assert words in error["message"]


@pytest.mark.ray_only("TorchServe takes a GET for a request without a body")
@pytest.mark.parametrize(
    "path", [*(f"/predictions/{of.path}" for of in ENDPOINTS.values()), "/v1/embeddings"]
)
def test_a_description(api: Api, path: str) -> None:
    told = api.inference("GET", path).json()
    assert (told["model"], told["embedding_dim"]) == (MODEL, DIM)
    # It is true: what it says is taken, and its document is there.
    body = json.dumps(told["example"]).replace("<base64 or data: URI>", b64(picture(1)))
    assert JSON in told["content_types"]
    response = api.inference(told["method"], path, content=body, headers={"Content-Type": JSON})
    assert response.status_code == 200, response.text
    assert response.json()["space_id"] == told["space_id"]
    assert path in api.inference("GET", told["document"]).json()["paths"]


@pytest.mark.ray_only("as above")
def test_a_description_needs_the_token(api: Api) -> None:
    assert api.http.get(f"{api.url}/predictions/clip_text").status_code == 400
    assert api.http.get(f"{api.url}/v1/embeddings").status_code == 401
    assert api.inference("GET", "/predictions/clip_text/2").status_code == 404


@pytest.mark.torchserve_only("Ray Serve has it at /v1/models, see tests/scale/serve/test_serve.py")
def test_the_models_are_not_listed(api: Api) -> None:
    """An archive of that version would be a process more, for one sentence."""
    assert api.inference("GET", "/predictions/v1/models").status_code == 404
