"""OpenAI's bodies: texts and pictures in one list."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from clipserve.cost import overloaded
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import EncoderSpec, Modality, decode_vector, encode_vector
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import RequestError
from clipserve.pipeline import Pipeline
from clipserve.quantization import QUANTIZATIONS, quantize
from clipserve.settings import Settings
from clipserve.wire.messages import Embedded
from clipserve.wire.openai import MixedRequest, decode, encode, encode_error, model_reply, models_reply
from clipserve.wire.rows import JSON, Reply, RequestLimits, Row
from reliability.questions import sentence
from tests.http.api import b64, picture

MODEL, DIM = "clip", 32


@pytest.fixture(scope="module")
def door(image_encoder: ExportedImageEncoder, text_encoder: ExportedTextEncoder) -> Pipeline:
    return Pipeline(ENDPOINTS["v1"], [image_encoder, text_encoder], Settings())


def read(row: Row, spec: EncoderSpec) -> MixedRequest:
    return decode(row, RequestLimits(), spec)


def ask(door: Pipeline, **body: Any) -> Reply:
    row = Row(json.dumps({"model": MODEL, **body}).encode(), JSON)
    return door.handle([row])[0]


def embeddings(reply: Reply) -> list[Any]:
    assert reply.status == 200, reply.body
    data = json.loads(reply.body)["data"]
    assert [(entry["object"], entry["index"]) for entry in data] == [
        ("embedding", index) for index in range(len(data))
    ]
    return [entry["embedding"] for entry in data]


def test_answer(door: Pipeline) -> None:
    reply = ask(door, input=["two dogs", "a cat"], user="somebody")
    answer = json.loads(reply.body)
    assert reply.status == 200
    assert set(answer) == {"object", "data", "model", "space_id", "usage"}
    assert answer["space_id"] == door.specs[0].space_id
    assert [(d["object"], d["index"], len(d["embedding"])) for d in answer["data"]] == [
        ("embedding", 0, DIM),
        ("embedding", 1, DIM),
    ]
    assert answer["model"] == MODEL
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 4


def test_base64_is_what_float_is(door: Pipeline) -> None:
    as_float, as_base64 = (
        json.loads(ask(door, input="two dogs", encoding_format=name).body)["data"][0]["embedding"]
        for name in ("float", "base64")
    )
    np.testing.assert_array_equal(np.asarray(as_float, np.float32), decode_vector(as_base64))


def test_its_own_dimensions_are_honoured(door: Pipeline) -> None:
    assert ask(door, input="a", dimensions=DIM).status == 200
    assert ask(door, input="a", dimensions=None).status == 200
    # infinity's client, of its own accord.
    assert ask(door, input="a", dimensions=0).status == 200


@pytest.mark.parametrize("truncate", ["END", True, None])
def test_a_long_text_is_cut_at_its_end(door: Pipeline, truncate: Any) -> None:
    start = "two dogs " * 100
    reply = ask(door, input=[f"{start} in the snow", start], truncate=truncate)
    cut, whole = embeddings(reply)
    assert cut == whole
    assert embeddings(ask(door, input=start)) == [cut]


REFUSED: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "another model": ({"model": "text-embedding-3-small", "input": "a"}, 404, "model_not_found", "'clip' is"),
    "a model that is no text": ({"model": 5, "input": "a"}, 404, "model_not_found", "the model 5"),
    "no input": ({"model": MODEL}, 400, "invalid_request", "'input' is missing"),
    "dimensions": ({"model": MODEL, "input": "a", "dimensions": 16}, 400, "invalid_request", "gives 32"),
    "dimensions true": ({"model": MODEL, "input": "a", "dimensions": True}, 400, "invalid_request", "true"),
    "tokens": ({"model": MODEL, "input": [5, 7]}, 400, "invalid_request", "array of tokens"),
    "lists of tokens": ({"model": MODEL, "input": [[5, 7], [8]]}, 400, "invalid_request", "array of tokens"),
    "two lists": ({"input": "a", "inputs": ["b"]}, 400, "invalid_request", "'input' and 'inputs' are given"),
    "a user": ({"input": "a", "user": 5}, 400, "invalid_request", "'user' is 5"),
    "an input type": ({"input": "a", "input_type": []}, 400, "invalid_request", "'input_type' is a list"),
    "start": ({"input": "a", "truncate": "START"}, 400, "invalid_request", "'truncate' is 'START'"),
    "not at all": ({"input": "a", "truncate": False}, 400, "invalid_request", "'truncate' is false"),
    "truncate 1": ({"input": "a", "truncate": 1}, 400, "invalid_request", "'truncate' is 1"),
    "truncate a list": ({"input": "a", "truncate": []}, 400, "invalid_request", "'truncate' is a list"),
    "a modality": ({"input": "a", "modality": "audio"}, 400, "invalid_request", "are image, text"),
    "no types": ({"input": "a", "embedding_types": []}, 400, "invalid_request", "should be a list of float"),
    "types": ({"input": "a", "embedding_types": "int8"}, 400, "invalid_request", "is 'int8', should be a"),
    "a type": ({"input": "a", "embedding_types": ["int4"]}, 400, "invalid_request", "holds 'int4', allowed"),
    "no type": ({"input": "a", "embedding_types": [{}]}, 400, "invalid_request", "holds an object, allowed"),
    "twice": ({"input": "a", "embedding_types": ["int8"] * 2}, 400, "invalid_request", "each once"),
    "a message": ({"messages": {"content": "a"}}, 400, "invalid_request", "'messages' is an object"),
    "two messages": ({"messages": [{"content": "a"}] * 2}, 400, "invalid_item", "an item of 2 messages"),
    "null": ({"input": None}, 400, "invalid_request", "'input' is missing"),
    "unknown field": ({"model": MODEL, "input": "a", "n": 2}, 400, "invalid_request", "unknown field 'n'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_requests(door: Pipeline, name: str) -> None:
    body, status, code, words = REFUSED[name]
    with pytest.raises(RequestError, match=words) as refused:
        read(Row(json.dumps(body).encode(), JSON), door.specs[0])
    assert (refused.value.status, refused.value.code) == (status, code)


@pytest.mark.parametrize(
    ("given", "status", "code", "param"),
    [
        ([], 400, "empty_request", None),
        ({}, 400, "invalid_item", "input[0]"),
        (5, 400, "invalid_request", None),
        (["a", 5], 400, "invalid_item", "input[1]"),
        (["a", "b" * 20_001], 400, "text_too_long", "input[1]"),
        ("b" * 20_001, 413, "text_too_long", "input[0]"),
        (["a"] * 129, 413, "too_many_items", None),
        (["\ud800"], 400, "invalid_encoding", "input[0]"),
    ],
    ids=[
        "none",
        "an object",
        "a number",
        "a wrong one",
        "a long one",
        "only a long one",
        "many",
        "half a surrogate pair",
    ],
)
def test_one_wrong_item_fails_the_request(
    door: Pipeline, given: Any, status: int, code: str, param: str | None
) -> None:
    reply = ask(door, input=given)
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
def test_bodies_of_another_kind(door: Pipeline, asked: Row, words: str) -> None:
    """CASES 2, 12, 25, on their siblings below /v1."""
    with pytest.raises(RequestError, match=words) as refused:
        read(asked, door.specs[0])
    assert (refused.value.status, refused.value.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["", "text/json", "application/json; charset=UTF-8"])
def test_json_by_its_other_names(door: Pipeline, content_type: str) -> None:
    """CASES 2."""
    body = json.dumps({"model": MODEL, "input": ["a"]}).encode()
    assert read(Row(body, content_type), door.specs[0]).texts == ["a"]


# ---- texts and pictures

PNG = picture(1, (40, 30))
BASE64 = b64(PNG)
URI = f"data:image/png;base64,{BASE64}"

# A picture, or a text, in every shape: what stands in `input` or `inputs`, and what stands beside it.
PICTURES: dict[str, tuple[Any, dict[str, Any]]] = {
    "data: URI": (URI, {}),
    "DATA: URI": (URI.replace("data:image", "DATA:Image"), {}),
    "image": ({"image": BASE64}, {}),
    "image, data: URI": ({"image": URI}, {}),
    "image_url": ({"type": "image_url", "image_url": {"url": URI}}, {}),
    "image_url, a detail": ({"type": "image_url", "image_url": {"url": URI, "detail": "low"}}, {}),
    "image_url, a text": ({"type": "image_url", "image_url": URI}, {}),
    "content": ({"content": [{"type": "image_url", "image_url": {"url": URI}}]}, {}),
    "content, image": ({"content": [{"image": BASE64}]}, {}),
    "modality": (BASE64, {"modality": "image"}),
    "modality, data: URI": (URI, {"modality": "image"}),
}
SENTENCE = "két kutya a hóban"
SENTENCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "string": (SENTENCE, {}),
    "text": ({"text": SENTENCE}, {}),
    "part": ({"type": "text", "text": SENTENCE}, {}),
    "content": ({"content": [{"type": "text", "text": SENTENCE}]}, {}),
    "content, a string": ({"content": SENTENCE}, {}),
    "modality": (SENTENCE, {"modality": "text"}),
}


@pytest.fixture(scope="module")
def vectors(
    image_encoder: ExportedImageEncoder, text_encoder: ExportedTextEncoder
) -> dict[Modality, list[float]]:
    """What the two endpoints for one kind give."""
    pictures = Pipeline(ENDPOINTS["clip_image"], [image_encoder], Settings())
    texts = Pipeline(ENDPOINTS["clip_text"], [text_encoder], Settings())
    return {
        "image": embeddings(pictures.handle([Row(json.dumps({"input": [BASE64]}).encode(), JSON)])[0])[0],
        "text": embeddings(texts.handle([Row(json.dumps({"input": SENTENCE}).encode(), JSON)])[0])[0],
    }


@pytest.mark.parametrize(
    ("modality", "shape"), [*(("image", shape) for shape in PICTURES), *(("text", s) for s in SENTENCES)]
)
def test_every_shape_of_an_item(
    door: Pipeline, vectors: dict[Modality, list[float]], modality: Modality, shape: str
) -> None:
    item, beside = (PICTURES if modality == "image" else SENTENCES)[shape]
    for asked in ({"input": item}, {"input": [item]}, {"inputs": [item]}):
        # To the bit: the same forward pass of the same encoder.
        assert embeddings(ask(door, **asked, **beside)) == [vectors[modality]]


@pytest.mark.parametrize("role", [{}, {"role": "user"}])
def test_a_message(door: Pipeline, vectors: dict[Modality, list[float]], role: dict[str, str]) -> None:
    part = {"type": "image_url", "image_url": {"url": URI}}
    assert embeddings(ask(door, messages=[{**role, "content": [part]}])) == [vectors["image"]]
    assert embeddings(ask(door, messages=[{**role, "content": SENTENCE}])) == [vectors["text"]]


def test_null_is_as_if_it_were_not_there(door: Pipeline, vectors: dict[Modality, list[float]]) -> None:
    """Clients of typed languages send all that they know of."""
    asked = {"input": None, "inputs": [SENTENCE], "messages": None, "model": None, "modality": None}
    given = {**asked, "embedding_types": None, "encoding_format": None, "user": None, "input_type": None}
    assert embeddings(ask(door, **given)) == [vectors["text"]]


def test_a_url_as_a_text_is_one(door: Pipeline) -> None:
    assert ask(door, input="https://example.org/a.png").status == 200


TWO = "an item of 2 parts"
WRONG_ITEMS: dict[str, tuple[Any, str, str]] = {
    "a number": (5, "invalid_item", "is 5"),
    "a list": ([URI], "invalid_item", "is a list"),
    "nothing": ({}, "invalid_item", "should be a text"),
    "text and image": ({"text": "a", "image": BASE64}, "invalid_item", TWO),
    "text and part": ({"type": "text", "text": "a", "image_url": {"url": URI}}, "invalid_item", TWO),
    "two parts": ({"content": [{"type": "text", "text": "a"}, {"image": BASE64}]}, "invalid_item", TWO),
    "no part": ({"content": []}, "invalid_item", "an item of 0 parts"),
    "a part in a part": ({"content": [{"content": ["a"]}]}, "invalid_item", "should be a text"),
    "a content that is none": ({"content": 5}, "invalid_item", "should be a text"),
    "a text that is none": ({"text": 5}, "invalid_item", "should be a text"),
    "an image that is none": ({"image": None}, "invalid_item", "should be a text"),
    "a URL that is none": (
        {"type": "image_url", "image_url": {"url": 5}},
        "invalid_item",
        "should be a text",
    ),
    "a type of its own": ({"type": "audio", "text": "a"}, "invalid_item", "should be a text"),
    "another type": ({"type": "image_url", "text": "a"}, "invalid_item", "should be a text"),
    "http": ({"image": "http://127.0.0.1/a.png"}, "url_not_fetched", "no URL is ever fetched"),
    "https": (
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        "url_not_fetched",
        "no URL is ever fetched",
    ),
    "no base64": ({"image": "*"}, "invalid_base64", "none of its own"),
    "no picture": ({"image": b64(b"no picture")}, "unsupported_image_format", ""),
    "a long text": ("b" * 20_001, "text_too_long", "20001 characters"),
}


@pytest.mark.parametrize("name", WRONG_ITEMS)
@pytest.mark.parametrize("field", ["input", "inputs"])
def test_a_wrong_item_is_named(door: Pipeline, name: str, field: str) -> None:
    item, code, words = WRONG_ITEMS[name]
    reply = ask(door, **{field: ["good", {"image": BASE64}, item, "good"]})
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["code"], error["param"]) == (400, code, f"{field}[2]")
    assert words in error["message"]


def test_a_message_of_two_parts(door: Pipeline) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": URI}}]
    reply = ask(door, messages=[{"role": "user", "content": parts}])
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["code"], error["param"]) == (400, "invalid_item", "messages[0]")
    assert TWO in error["message"]


def test_texts_and_pictures_count_together(door: Pipeline) -> None:
    """Issue 13's principle: a limit of 128 pictures and one of 128 texts would admit twice as many items."""
    reply = ask(door, input=[{"image": BASE64}] * 64 + ["a"] * 65)
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (413, "too_many_items")
    reply = ask(door, input=[URI, *["b" * 20_000] * 26])
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (413, "text_too_long")


def test_embeddings_come_in_the_order_of_the_items(door: Pipeline) -> None:
    """Whatever is embedded with what: three requests of pictures and texts in one batch, no two alike."""
    alone: dict[str, list[float]] = {}
    asked: list[list[Any]] = []
    for request in range(3):
        items: list[Any] = []
        for place in range(9):
            seed = 20 * request + place
            text = (place + request) % 3 == 0
            items.append(sentence(seed) if text else {"image": b64(picture(seed))})
            (alone[json.dumps(items[-1])],) = embeddings(ask(door, input=[items[-1]]))
        asked.append(items)
    replies = door.handle([Row(json.dumps({"input": items}).encode(), JSON) for items in asked])
    every = np.array([*alone.values()])
    apart = np.abs(every[:, None] - every[None]).max(-1)[~np.eye(len(every), dtype=bool)].min()
    assert apart > 1e-3, "two items are so alike that one in the place of the other would not be seen"
    for items, reply in zip(asked, replies, strict=True):
        expected = [alone[json.dumps(item)] for item in items]
        np.testing.assert_allclose(embeddings(reply), expected, rtol=0, atol=2e-6)


def test_what_there_was_no_time_for_fails_the_request(door: Pipeline) -> None:
    """A part of an answer has no place in OpenAI's; that it may be asked for again is not lost."""
    request = MixedRequest([b"", b""], ["a"], ["image", "text", "image"], ["float"], "input")
    done = Embedded(np.ones(DIM, np.float32))
    reply = encode(door.specs[0], request, [[done, overloaded()], [done]])
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["code"], error["type"]) == (503, "overloaded", "server_error")
    assert "time for 2 of 3 items" in error["message"]
    # What is wrong stays wrong, however often it is asked for.
    reply = encode(door.specs[0], request, [[overloaded(), RequestError("invalid_image", "no")], [done]])
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["code"], error["param"]) == (400, "invalid_image", "input[2]")


# ---- how embeddings are written


def test_types(door: Pipeline) -> None:
    (vector,) = embeddings(ask(door, input=URI))
    exact = np.asarray(vector, np.float32)
    expected = {
        "float": vector,
        "base64": encode_vector(exact),
        **{name: quantize(exact, name).tolist() for name in QUANTIZATIONS},
    }
    for name, written in expected.items():
        # OpenAI's client asks for base64 unless it is told otherwise, and passes the other field on.
        assert embeddings(ask(door, input=URI, embedding_types=[name], encoding_format="base64")) == [written]
    assert embeddings(ask(door, input=URI, embedding_types=[*expected])) == [expected]


def test_wrong_encoding_format(door: Pipeline) -> None:
    reply = ask(door, input="a", encoding_format="hex")
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
