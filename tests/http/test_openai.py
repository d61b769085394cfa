"""OpenAI's door: texts and pictures in one list, at the one path that both servers have."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from clipserve.client import Client, Management
from clipserve.wire.openai import REQUEST
from reliability.questions import sentence
from tests.http.api import JSON, Api, b64, picture, vectors

DOOR = "v1/embeddings"
PNG = picture(1)
URI = f"data:image/png;base64,{b64(PNG)}"
SENTENCE = "két kutya a hóban"
PART = {"type": "image_url", "image_url": {"url": URI}}

PICTURES: dict[str, dict[str, Any]] = {
    "data: URI": {"input": URI},
    "image": {"input": {"image": b64(PNG)}},
    "image, data: URI": {"input": [{"image": URI}]},
    "image_url": {"input": [PART]},
    "image_url, alone": {"input": PART},
    "image_url, a detail": {"input": [{**PART, "image_url": {"url": URI, "detail": "low"}}]},
    "image_url, a string": {"input": [{**PART, "image_url": URI}]},
    "content": {"input": [{"content": [PART]}]},
    "content, not in a list": {"input": [{"content": PART}]},
    "content, image": {"input": [{"role": "user", "content": [{"image": b64(PNG)}]}]},
    "messages": {"messages": [{"role": "user", "content": [PART]}]},
    "Cohere's inputs": {"inputs": [{"content": [PART]}], "input_type": "image"},
    "infinity's modality": {"input": [URI], "modality": "image"},
    "modality, base64": {"input": b64(PNG), "modality": "image", "user": "somebody"},
}
TEXTS: dict[str, dict[str, Any]] = {
    "string": {"input": SENTENCE},
    "strings": {"input": [SENTENCE], "model": "clip"},
    "text": {"input": [{"text": SENTENCE}]},
    "part": {"input": {"type": "text", "text": SENTENCE}},
    "content": {"input": {"content": [{"type": "text", "text": SENTENCE}]}},
    "content, a string": {"input": [{"content": SENTENCE}]},
    "messages": {"messages": [{"role": "user", "content": SENTENCE}]},
    "Cohere's inputs": {
        "inputs": [{"content": [{"type": "text", "text": SENTENCE}]}],
        "input_type": "search_query",
    },
    "Cohere's inputs, strings": {"inputs": [SENTENCE]},
    "modality": {"input": SENTENCE, "modality": "text"},
    "every field": {
        "input": [SENTENCE],
        "model": "clip",
        "dimensions": 32,
        "user": "somebody",
        "input_type": "search_query",
        "truncate": "END",
        "encoding_format": "float",
        "embedding_types": ["float"],
    },
    # Clients of typed languages send all that they know of.
    "every field, null": dict.fromkeys(REQUEST["properties"]) | {"input": [SENTENCE]},
    "no dimensions, as infinity's client says": {"input": SENTENCE, "dimensions": 0},
    "truncate, as Jina says": {"input": SENTENCE, "truncate": True},
    "base64": {"input": SENTENCE, "encoding_format": "base64"},
}


def data(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text[:300]
    return [entry["embedding"] for entry in response.json()["data"]]


@pytest.mark.parametrize("shape", PICTURES)
def test_a_picture_in_every_shape(api: Api, shape: str) -> None:
    (expected,) = vectors(api.post("clip_image", PNG, "image/png"))
    (found,) = vectors(api.post_json(DOOR, PICTURES[shape]))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", TEXTS)
def test_a_text_in_every_shape(api: Api, shape: str) -> None:
    (expected,) = vectors(api.post_json("clip_text", {"input": SENTENCE}))
    (found,) = vectors(api.post_json(DOOR, TEXTS[shape]))
    np.testing.assert_array_equal(found, expected)


def test_a_list_of_both_is_what_the_two_endpoints_give(api: Api) -> None:
    pictures = [picture(seed) for seed in range(3)]
    texts = [sentence(seed) for seed in range(3)]
    as_texts = vectors(api.post_json("clip_text", {"input": texts}))
    as_pictures = vectors(api.post_json("clip_image", {"input": [b64(p) for p in pictures]}))
    order = [("text", 0), ("image", 0), ("image", 1), ("text", 1), ("image", 2), ("text", 2)]
    items = [texts[i] if kind == "text" else {"image": b64(pictures[i])} for kind, i in order]
    expected = np.stack([(as_texts if kind == "text" else as_pictures)[i] for kind, i in order])
    np.testing.assert_array_equal(vectors(api.post_json(DOOR, {"input": items})), expected)


@pytest.mark.parametrize(
    ("item", "code", "words"),
    [
        (5, "invalid_item", "is 5"),
        (None, "invalid_item", "is null"),
        ([URI], "invalid_item", "is a list"),
        ({}, "invalid_item", "should be a text"),
        ({"content": [{"text": "a"}, PART]}, "invalid_item", "an item of 2 parts"),
        ({"text": "a", "image": b64(PNG)}, "invalid_item", "an item of 2 parts"),
        ({"text": "a", "image_url": {"url": URI}}, "invalid_item", "an item of 2 parts"),
        ({"content": []}, "invalid_item", "an item of 0 parts"),
        ({"content": [{"content": ["a"]}]}, "invalid_item", "should be a text"),
        ({"content": 5}, "invalid_item", "should be a text"),
        ({"text": 5}, "invalid_item", "should be a text"),
        ({"image": None}, "invalid_item", "should be a text"),
        ({"type": "image_url", "image_url": {"url": 5}}, "invalid_item", "should be a text"),
        ({"type": "image_url", "text": "a"}, "invalid_item", "should be a text"),
        ({"image": "http://127.0.0.1:1/a.png"}, "url_not_fetched", "no URL is ever fetched"),
        (
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
            "url_not_fetched",
            "no URL is ever fetched",
        ),
        ({"image": "data:image/png;base64,*"}, "invalid_base64", "none of its own"),
        ({"image": b64(PNG[:200])}, "invalid_image", ""),
        ({"image": b64(b"no picture")}, "unsupported_image_format", ""),
        ({"audio": "…"}, "invalid_item", "should be a text"),
        ("b" * 20_001, "text_too_long", "20001 characters"),
    ],
)
def test_a_wrong_item_is_named(api: Api, item: Any, code: str, words: str) -> None:
    for field in ("input", "inputs"):
        response = api.post_json(DOOR, {field: ["a", URI, item, URI]})
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, code, f"{field}[2]")
        assert words in error["message"]


def test_a_wrong_message_is_named(api: Api) -> None:
    parts = [{"type": "text", "text": "a"}, PART]
    response = api.post_json(DOOR, {"messages": [{"role": "user", "content": parts}]})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_item", "messages[0]")
    assert "an item of 2 parts" in error["message"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"input": "a", "model": "text-embedding-3-small"}, 404, "model_not_found"),
        ({"input": "a", "model": 5}, 404, "model_not_found"),
        ({"input": "a", "dimensions": 16}, 400, "invalid_request"),
        ({"input": "a", "dimensions": True}, 400, "invalid_request"),
        ({"input": [5, 7]}, 400, "invalid_request"),
        ({"input": [[5, 7], [8]]}, 400, "invalid_request"),
        ({"input": 5}, 400, "invalid_request"),
        ({"input": None}, 400, "invalid_request"),
        ({"input": "a", "inputs": ["b"]}, 400, "invalid_request"),
        ({"messages": [{"content": "a"}] * 2}, 400, "invalid_item"),
        ({"messages": {"content": "a"}}, 400, "invalid_request"),
        ({"input": "a", "user": 5}, 400, "invalid_request"),
        ({"input": "a", "input_type": []}, 400, "invalid_request"),
        ({"input": "a", "truncate": "START"}, 400, "invalid_request"),
        ({"input": "a", "modality": "audio"}, 400, "invalid_request"),
        ({"input": "a", "encoding_format": "hex"}, 400, "invalid_request"),
        ({"input": "a", "n": 2}, 400, "invalid_request"),
        ({"input": []}, 400, "empty_request"),
        ({"input": ["a"] * 129}, 413, "too_many_items"),
        ({"input": "a", "embedding_types": ["int4"]}, 400, "invalid_request"),
        ({"input": "a", "embedding_types": ["int8"] * 2}, 400, "invalid_request"),
        ({"input": "a", "embedding_types": []}, 400, "invalid_request"),
        ({"input": "a", "embedding_types": "int8"}, 400, "invalid_request"),
        ({}, 400, "invalid_request"),
    ],
)
def test_a_wrong_request(api: Api, body: dict[str, Any], status: int, code: str) -> None:
    response = api.post_json(DOOR, body)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (response.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error")


@pytest.mark.parametrize("content_type", ["text/plain", "application/json; charset=utf-16", "image/png"])
def test_another_kind_of_body(api: Api, content_type: str) -> None:
    response = api.post(DOOR, PNG, content_type)
    assert response.status_code == 415
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_it_is_quantised_as_asked(api: Api) -> None:
    names = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    (found,) = data(api.post_json(DOOR, {"input": URI, "embedding_types": names}))
    assert list(found) == names
    length = len(found["float"])
    assert [len(found[name]) for name in names[1:5]] == [length, length, length // 8, length // 8]
    for name in names:
        assert data(api.post_json(DOOR, {"input": URI, "embedding_types": [name]})) == [found[name]]


def test_the_endpoints_name_alone_leads_there(api: Api) -> None:
    """Who asks all endpoints alike, by their names: `reliability`, for one."""
    assert data(api.post_json("v1", {"input": SENTENCE})) == data(api.post_json(DOOR, {"input": SENTENCE}))


def test_an_unknown_version_is_not_found(api: Api) -> None:
    assert api.post_json("v1/completions", {"input": "a"}).status_code == 404


def test_answers_come_in_the_order_of_inputs_under_load(api: Api) -> None:
    """Callers with lists of their own, of which no two items are alike, batched as they come."""
    callers, each = 6, 4

    def item(seed: int) -> Any:
        return sentence(seed) if seed % 3 else {"image": b64(picture(seed, (40, 30)))}

    def items(caller: int, turn: int) -> list[Any]:
        seeds = list(range(10 * caller, 10 * caller + 10))
        return [item(seed) for seed in seeds[turn:] + seeds[:turn]]

    alone = {
        json.dumps(item(seed)): data(api.post_json(DOOR, {"input": [item(seed)]}))[0]
        for seed in range(10 * callers)
    }
    every = np.array([*alone.values()])
    apart = np.abs(every[:, None] - every[None]).max(-1)[~np.eye(len(every), dtype=bool)].min()
    assert apart > 1e-4, "two items are so alike that one in the place of the other would not be seen"

    def ask(caller: int) -> list[list[Any]]:
        return [data(api.post_json(DOOR, {"input": items(caller, turn)})) for turn in range(each)]

    with ThreadPoolExecutor(callers) as pool:
        answers = list(pool.map(ask, range(callers)))
    for caller, found in enumerate(answers):
        for turn, embeddings in enumerate(found):
            expected = [alone[json.dumps(of)] for of in items(caller, turn)]
            np.testing.assert_allclose(embeddings, expected, rtol=0, atol=2e-6)


def test_its_worker_says_what_it_serves(client: Client) -> None:
    assert [spec.modality for spec in Management(client).specs("v1")] == ["image", "text"]


@pytest.mark.parametrize("content_type", [JSON, None])
def test_a_body_of_nothing(api: Api, content_type: str | None) -> None:
    response = api.post(DOOR, b"", content_type)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "empty_request")
    assert set(error) == {"message", "type", "param", "code"}
