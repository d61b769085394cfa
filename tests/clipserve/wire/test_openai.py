"""OpenAI's bodies: another shape of the `clip_text` endpoint's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from clipserve.encoder import ExportedTextEncoder
from clipserve.encoder_spec import EncoderSpec, decode_vector
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import RequestError
from clipserve.pipeline import Pipeline
from clipserve.settings import Settings
from clipserve.wire.messages import EmbeddingRequest
from clipserve.wire.openai import decode, encode_error, model_reply, models_reply
from clipserve.wire.rows import JSON, Reply, RequestLimits, Row

MODEL, DIM = "clip", 32


@pytest.fixture(scope="module")
def texts(text_encoder: ExportedTextEncoder) -> Pipeline:
    return Pipeline(ENDPOINTS["clip_text"], [text_encoder], Settings())


def read(row: Row, spec: EncoderSpec) -> EmbeddingRequest[str]:
    return decode(row, RequestLimits(), spec)


def ask(texts: Pipeline, **body: Any) -> Reply:
    row = Row(json.dumps({"model": MODEL, **body}).encode(), JSON, dialect="openai")
    return texts.handle([row])[0]


def test_answer(texts: Pipeline) -> None:
    reply = ask(texts, input=["two dogs", "a cat"], user="somebody")
    answer = json.loads(reply.body)
    assert reply.status == 200
    assert set(answer) == {"object", "data", "model", "usage"}
    assert [(d["object"], d["index"], len(d["embedding"])) for d in answer["data"]] == [
        ("embedding", 0, DIM),
        ("embedding", 1, DIM),
    ]
    assert answer["model"] == MODEL
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 4


def test_base64_is_what_float_is(texts: Pipeline) -> None:
    as_float, as_base64 = (
        json.loads(ask(texts, input="two dogs", encoding_format=name).body)["data"][0]["embedding"]
        for name in ("float", "base64")
    )
    np.testing.assert_array_equal(np.asarray(as_float, np.float32), decode_vector(as_base64))


def test_its_own_dimensions_are_honoured(texts: Pipeline) -> None:
    assert ask(texts, input="a", dimensions=DIM).status == 200
    assert ask(texts, input="a", dimensions=None).status == 200


REFUSED: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "another model": ({"model": "text-embedding-3-small", "input": "a"}, 404, "model_not_found", "'clip' is"),
    "no model": ({"input": "a"}, 400, "invalid_request", "'model' is missing"),
    "no input": ({"model": MODEL}, 400, "invalid_request", "'input' is missing"),
    "dimensions": ({"model": MODEL, "input": "a", "dimensions": 16}, 400, "invalid_request", "gives 32"),
    "dimensions true": ({"model": MODEL, "input": "a", "dimensions": True}, 400, "invalid_request", "true"),
    "tokens": ({"model": MODEL, "input": [5, 7]}, 400, "invalid_request", "array of tokens"),
    "lists of tokens": ({"model": MODEL, "input": [[5, 7], [8]]}, 400, "invalid_request", "array of tokens"),
    "unknown field": ({"model": MODEL, "input": "a", "n": 2}, 400, "invalid_request", "unknown field 'n'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_requests(texts: Pipeline, name: str) -> None:
    body, status, code, words = REFUSED[name]
    with pytest.raises(RequestError, match=words) as refused:
        read(Row(json.dumps(body).encode(), JSON), texts.specs[0])
    assert (refused.value.status, refused.value.code) == (status, code)


@pytest.mark.parametrize(
    ("given", "status", "code", "param"),
    [
        ([], 400, "empty_request", None),
        ({}, 400, "invalid_request", None),
        (["a", 5], 400, "invalid_item", "input[1]"),
        (["a", "b" * 20_001], 400, "text_too_long", "input[1]"),
        ("b" * 20_001, 413, "text_too_long", "input[0]"),
        (["a"] * 129, 413, "too_many_items", None),
        (["\ud800"], 400, "invalid_encoding", "input[0]"),
    ],
    ids=[
        "none",
        "an object",
        "a wrong one",
        "a long one",
        "only a long one",
        "many",
        "half a surrogate pair",
    ],
)
def test_one_wrong_item_fails_the_request(
    texts: Pipeline, given: Any, status: int, code: str, param: str | None
) -> None:
    reply = ask(texts, input=given)
    error = json.loads(reply.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (reply.status, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Row(b"{}", "text/plain"), "send application/json"),
        (Row(b"", "multipart/form-data; boundary=b"), "send application/json"),
        (Row(b"{}", "application/json; charset=utf-16"), "charset is 'utf-16'"),
        (Row(b"{}", JSON, (), "gzip"), "Content-Encoding is 'gzip'"),
    ],
)
def test_bodies_of_another_kind(texts: Pipeline, asked: Row, words: str) -> None:
    """CASES 2, 12, 25, on their siblings below /v1."""
    with pytest.raises(RequestError, match=words) as refused:
        read(asked, texts.specs[0])
    assert (refused.value.status, refused.value.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["", "text/json", "application/json; charset=UTF-8"])
def test_json_by_its_other_names(texts: Pipeline, content_type: str) -> None:
    """CASES 2."""
    body = json.dumps({"model": MODEL, "input": ["a"]}).encode()
    assert read(Row(body, content_type), texts.specs[0]).items == ["a"]


def test_wrong_encoding_format(texts: Pipeline) -> None:
    reply = ask(texts, input="a", encoding_format="hex")
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (400, "invalid_request")


def test_the_servers_own_failures() -> None:
    error = json.loads(encode_error(RequestError("overloaded", "ask again", 503)).body)["error"]
    assert error == {"message": "ask again", "type": "server_error", "param": None, "code": "overloaded"}


def test_models() -> None:
    listed = json.loads(models_reply(MODEL, 5).body)
    assert listed == {"object": "list", "data": [json.loads(model_reply(MODEL, MODEL, 5).body)]}
    assert listed["data"][0] == {"id": MODEL, "object": "model", "created": 5, "owned_by": "clipserve"}
    with pytest.raises(RequestError, match="is not served here") as refused:
        model_reply("gpt", MODEL, 5)
    assert refused.value.status == 404
