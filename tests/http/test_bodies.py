"""What a body is, and that all of it is read: the same on TorchServe and on Ray Serve."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from reliability import corpus
from tests.http.api import JSON, AnyServer, Api, b64, picture, vectors

SAME = 2e-6
MULTIPART = "multipart/form-data; boundary=b"
FORM = "application/x-www-form-urlencoded"
PICTURES = [picture(1), picture(2, format="JPEG"), picture(3, (30, 90))]


def part(name: str, content: bytes, *headers: str, file: str | None = None) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"'
    disposition += "" if file is None else f'; filename="{file}"'
    return b"--b\r\n" + "\r\n".join([disposition, *headers]).encode() + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


def one_by_one(api: Api) -> np.ndarray[Any, Any]:
    return np.concatenate([vectors(api.post("clip_image", data, "image/png")) for data in PICTURES])


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


# ---- forms


def test_files_of_one_name(api: Api) -> None:
    """CASES 1: `curl -F a=@x.png -F a=@y.png`, a browser's `multiple`: all pictures, in their order."""
    body = form(*(part("a", data, file=f"{i}.png") for i, data in enumerate(PICTURES)))
    found = vectors(api.post("clip_image", body, MULTIPART))
    np.testing.assert_allclose(found, one_by_one(api), rtol=0, atol=SAME)
    # As httpx and requests write it, with content types.
    listed = [("a", (f"{i}.png", data, "image/png")) for i, data in enumerate(PICTURES)]
    asked = api.http.post(f"{api.url}/predictions/clip_image", headers=api.bearer(), files=listed)
    np.testing.assert_allclose(vectors(asked), found, rtol=0, atol=SAME)


def test_files_of_one_name_against_texts(api: Api) -> None:
    """CASES 1."""
    files = [part("a", data, file="x") for data in PICTURES]
    body = form(files[0], part("texts", b'["a dog", "a cat"]'), *files[1:])
    found = api.post("clip_similarity", body, MULTIPART).json()["cosine_similarity"]
    expected = api.post_json(
        "clip_similarity", {"images": [b64(p) for p in PICTURES], "texts": ["a dog", "a cat"]}
    )
    np.testing.assert_allclose(found, expected.json()["cosine_similarity"], atol=SAME)


@pytest.mark.parametrize("name", ["texts", "labels", "template"])
def test_a_field_given_twice_loses_nothing(api: Api, name: str) -> None:
    """CASES 1: never a 200 that lost one of them."""
    others = [part("labels", b'["a"]')] if name == "template" else []
    body = form(part("a", PICTURES[0], file="x"), *others, part(name, b'["a"]'), part(name, b'["b"]'))
    response = api.post("clip_similarity", body, MULTIPART)
    assert refusal(response) == (400, "invalid_request")
    assert "twice" in response.text


def test_the_format_that_a_form_asks_for(api: Api) -> None:
    """CASES 59."""
    picture_part = part("a", PICTURES[0], file="x")
    asked = api.post("clip_image", form(picture_part, part("encoding_format", b"base64")), MULTIPART)
    assert isinstance(asked.json()["data"][0]["embedding"], str)
    np.testing.assert_allclose(vectors(asked), one_by_one(api)[:1], rtol=0, atol=SAME)
    wrong = api.post("clip_image", form(picture_part, part("encoding_format", b"hex")), MULTIPART)
    assert refusal(wrong) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("endpoint", "field"),
    [
        *(("clip_image", name) for name in ("texts", "input", "format", "file")),
        *(("clip_similarity", name) for name in ("encoding_format", "images", "text")),
    ],
)
def test_fields_that_nobody_reads_are_named(api: Api, endpoint: str, field: str) -> None:
    """CASES 59. So is a picture without a file name, which is a field."""
    parts = [part("a", PICTURES[0], file="x"), part(field, PICTURES[1])]
    if endpoint == "clip_similarity":
        parts.append(part("texts", b'["a"]'))
    response = api.post(endpoint, form(*parts), MULTIPART)
    assert refusal(response) == (400, "invalid_request")
    assert f"unknown field '{field}'" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data;", "multipart/form-data; charset=utf-8"]
)
@pytest.mark.parametrize("endpoint", ["clip_text", "clip_image", "clip_similarity"])
def test_a_form_without_a_boundary(api: Api, endpoint: str, content_type: str) -> None:
    """CASES 1: whoever writes the type by hand forgets it; the body is not taken for anything else."""
    for body in (PICTURES[0], form(part("a", PICTURES[0], file="x")), b'{"input": "a"}'):
        response = api.post(endpoint, body, content_type)
        assert refusal(response) == (400, "invalid_request")
        assert "the multipart body cannot be read; " in response.json()["error"]["message"]


def test_very_many_parts(api: Api) -> None:
    """ATTACKS A10, as far as a worker sees it."""
    body = form(*[part("a", b"", file="x")] * 2001)
    assert refusal(api.post("clip_image", body, MULTIPART)) == (413, "too_many_items")


# ---- types, charsets, encodings


@pytest.mark.parametrize(
    "content_type",
    [None, "application/octet-stream", "text/json", "application/x-json", "application/vnd.api+json"],
)
def test_json_by_all_its_names_and_without_one(api: Api, content_type: str | None) -> None:
    """CASES 2: `requests.post(url, data=json.dumps(…))` names no type."""
    texts = ["two dogs", "a cat", "c"]
    asked = {
        "clip_text": {"input": texts},
        "clip_image": {"input": [b64(data) for data in PICTURES]},
        "clip_similarity": {"images": b64(PICTURES[0]), "texts": texts},
    }
    for endpoint, body in asked.items():
        found = api.post(endpoint, json.dumps(body), content_type).json()
        expected = api.post_json(endpoint, body).json()
        assert set(found) == set(expected), found
        if endpoint != "clip_similarity":
            assert len(found["data"]) == 3


@pytest.mark.parametrize("content_type", ["text/plain;charset=UTF-8", "image/png", "text/html"])
@pytest.mark.parametrize("endpoint", ["clip_text", "clip_image", "clip_similarity"])
def test_json_under_another_type(api: Api, endpoint: str, content_type: str) -> None:
    """CASES 2: a browser's `fetch` with a string says text/plain."""
    response = api.post(endpoint, json.dumps({"input": ["a", "b"]}), content_type)
    assert refusal(response) == (415, "unsupported_media_type")
    assert JSON in response.json()["error"]["message"]


def test_damaged_json_without_a_type_is_no_text(api: Api) -> None:
    """CASES 2."""
    assert refusal(api.post("clip_text", '{"input": ["a", "b",]}')) == (400, "invalid_json")


@pytest.mark.parametrize("charset", ["utf-16", "iso-8859-1"])
def test_other_charsets(api: Api, charset: str) -> None:
    """CASES 12."""
    text = api.post("clip_text", "két kutya".encode(charset), f"text/plain; charset={charset}")
    asked = api.post("clip_text", json.dumps({"input": "a"}).encode(charset), f"{JSON}; charset={charset}")
    for response in (text, asked):
        assert refusal(response) == (415, "unsupported_media_type")
        assert charset in response.json()["error"]["message"]
    # Of a part the worker does not always hear which it is: but it is never read as another.
    parts = [
        part("a", PICTURES[0], file="x"),
        part("texts", '["é"]'.encode(charset), f"Content-Type: {JSON}; charset={charset}"),
    ]
    assert api.post("clip_similarity", form(*parts), MULTIPART).status_code in (400, 415)
    assert len(vectors(api.post("clip_text", "két kutya", "text/plain; charset=UTF-8"))) == 1


@pytest.mark.parametrize("endpoint", ["clip_text", "clip_image", "clip_similarity"])
@pytest.mark.parametrize("content_type", [JSON, "image/png", None])
def test_compressed_bodies(api: Api, endpoint: str, content_type: str | None) -> None:
    """CASES 25."""
    response = api.post(endpoint, b"\x1f\x8b\x08", content_type, headers={"Content-Encoding": "gzip"})
    assert refusal(response) == (415, "unsupported_media_type")
    assert "Content-Encoding is 'gzip'" in response.json()["error"]["message"]


def test_compressed_bodies_that_say_so_in_two_headers(api: Api) -> None:
    """CASES 25: a list may be spread over several headers (RFC 9110, 5.3)."""
    token = api.bearer()["Authorization"]
    headers = [("Authorization", token), ("Content-Encoding", "identity"), ("Content-Encoding", "gzip")]
    response = api.http.post(
        f"{api.url}/predictions/clip_text",
        content=b"two dogs",
        headers=[*headers, ("Content-Type", "text/plain")],
    )
    assert refusal(response) == (415, "unsupported_media_type")


def test_json_with_a_byte_order_mark(api: Api) -> None:
    """CASES 2: never its characters as a text."""
    body = b"\xef\xbb\xbf" + json.dumps({"input": ["a", "b", "c"]}).encode()
    assert refusal(api.post("clip_text", body)) == (400, "invalid_json")
    assert refusal(api.post("clip_text", body, "text/plain")) == (415, "unsupported_media_type")


def test_base64_as_it_is_written_elsewhere(api: Api) -> None:
    """CASES 23."""
    written = [
        base64.encodebytes(PICTURES[0]).decode(),
        base64.urlsafe_b64encode(PICTURES[1]).decode().rstrip("="),
        f"data:image/png;base64,{base64.encodebytes(PICTURES[2]).decode()}",
    ]
    found = vectors(api.post_json("clip_image", {"input": written}))
    np.testing.assert_allclose(found, one_by_one(api), rtol=0, atol=SAME)
    wrong = api.post_json("clip_image", {"input": "QQ%3D%3D"})
    assert refusal(wrong) == (400, "invalid_base64")
    assert "'%' at character 3" in wrong.json()["error"]["message"]


# ---- cost


def test_bodies_that_would_cost_much(api: Api) -> None:
    """ATTACKS A1, A3, A7: refused before they are parsed, tokenised or put into templates."""
    endless = b"[" * 33 + b'"' + b'\\"' * 4_000_000
    lists = b'{"input": [' + (b"[" * 30 + b"]" * 30 + b",") * 100_000
    for endpoint in ("clip_text", "clip_image", "clip_similarity"):
        for body in (endless, lists):
            assert refusal(api.post(endpoint, body, JSON)) == (400, "invalid_json")
    labels = {"images": b64(PICTURES[0]), "labels": ["dog"] * 1000, "template": "🐶" * 19_000 + "{}"}
    assert refusal(api.post_json("clip_similarity", labels)) == (413, "text_too_long")


# ---- logs


SECRET = "a payload that must not reach a log"


def spliced(body: bytes) -> list[bytes]:
    """A body with the secret before, in the middle of, and behind it."""
    secret, half = SECRET.encode(), len(body) // 2
    return [secret + body, body[:half] + secret + body[half:], body + secret]


def test_no_damaged_request_leaves_its_payload_in_a_log(api: Api, server: AnyServer) -> None:
    """CASES 33: each kind of request that the fuzzer makes, and forms that TorchServe's frontend fails on."""
    kinds = {}
    for number in range(600):
        bad = corpus.bad_request(number)
        kinds.setdefault((bad.kind, bad.content_type), bad)
    assert len({kind for kind, _ in kinds}) >= 12
    asked = [(b.endpoint, b.content_type, body) for b in kinds.values() for body in spliced(b.body[:100_000])]
    headers = [
        "Content-Disposition: form-data",
        f"Content-Disposition: form-data; {SECRET}",
        f'Content-Disposition: form-data; name="{SECRET}"',
        f"Content-Disposition: {SECRET}",
        f"Content-Disposition: form-data; name=a; filename=b\r\nContent-Transfer-Encoding: {SECRET}",
        f"Content-Disposition: form-data; name=a; filename=b\r\nContent-Type: text/plain; charset={SECRET}",
        f"Content-Disposition: form-data; name=a; filename=b\r\nContent-Type: {SECRET}",
        f"{SECRET}: x",
    ]
    bodies = [f"--b\r\n{h}\r\n\r\n{SECRET}\r\n--b{end}\r\n".encode() for h in headers for end in ("--", "")]
    bodies += [PICTURES[0] + SECRET.encode(), SECRET.encode() + b"%zz=&a", b"a=" + SECRET.encode() + b"%"]
    asked += [
        (endpoint, content_type, body)
        for endpoint in ("clip_text", "clip_image", "clip_similarity")
        for content_type in (MULTIPART, "multipart/form-data", FORM, f"{SECRET}/x", f"x; charset={SECRET}")
        for body in bodies
    ]
    for endpoint, content_type, body in asked:
        api.post(endpoint, body, content_type)
    logged = {
        path.name: path.read_text(encoding="utf-8", errors="replace")
        for path in server.logs.rglob("*.*")
        if path.is_file()
    }
    assert logged
    assert [name for name, text in logged.items() if SECRET in text] == []
