"""What is wrong gets its own 4xx, code and sentence; what stands beside it gets its answer."""

from __future__ import annotations

import json
import struct
import threading
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from clipserve.image_formats import FORMATS
from tests.http.api import JSON, Api, b64, picture, vector, vectors

GOOD = picture(1)
FORM = "application/x-www-form-urlencoded"
# That Pillow writes, and no server admits.
UNKNOWN_FORMAT = min({"PCX", "PPM", "TGA"} - FORMATS.keys())


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims this size and has ten bytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + header, b"IDAT" + zlib.compress(b"\0" * 10)):
        png += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png


def nested(levels: int) -> bytes:
    return b'{"input": ' + b"[" * levels + b"]" * levels + b"}"


# endpoint, content type, body, status, code
REFUSED: dict[str, tuple[str, str | None, bytes, int, str]] = {
    "text: empty body": ("clip_text", None, b"", 400, "empty_request"),
    "text: empty JSON body": ("clip_text", JSON, b"", 400, "empty_request"),
    "text: form": ("clip_text", FORM, b"input=dog", 415, "unsupported_media_type"),
    "text: not JSON": ("clip_text", JSON, b'{"input": ', 400, "invalid_json"),
    "text: two values": ("clip_text", JSON, b'{"input": "a"} {}', 400, "invalid_json"),
    "text: a list": ("clip_text", JSON, b'["a"]', 400, "invalid_request"),
    "text: a number": ("clip_text", JSON, b"5", 400, "invalid_request"),
    "text: no input": ("clip_text", JSON, b"{}", 400, "invalid_request"),
    "text: unknown field": ("clip_text", JSON, b'{"input": "a", "urls": []}', 400, "invalid_request"),
    "text: null": ("clip_text", JSON, b'{"input": null}', 400, "invalid_request"),
    "text: empty list": ("clip_text", JSON, b'{"input": []}', 400, "empty_request"),
    "text: list of wrong items": ("clip_text", JSON, b'{"input": [1, null, {}]}', 400, "invalid_item"),
    "text: format": ("clip_text", JSON, b'{"input": "a", "encoding_format": "hex"}', 400, "invalid_request"),
    "text: format of a wrong type": (
        "clip_text",
        JSON,
        b'{"input": "a", "encoding_format": [1]}',
        400,
        "invalid_request",
    ),
    "text: key twice": ("clip_text", JSON, b'{"input": "a", "input": "b"}', 400, "invalid_json"),
    "text: NaN": ("clip_text", JSON, b'{"input": NaN}', 400, "invalid_json"),
    "text: infinity": ("clip_text", JSON, b'{"input": -Infinity}', 400, "invalid_json"),
    "text: huge number": ("clip_text", JSON, b'{"input": ' + b"9" * 100_000 + b"}", 400, "invalid_json"),
    "text: huge exponent": ("clip_text", JSON, b'{"input": 1e999999}', 400, "invalid_request"),
    "text: deep nesting": ("clip_text", JSON, nested(100), 400, "invalid_json"),
    "text: very deep nesting": ("clip_text", JSON, nested(1_000_000), 400, "invalid_json"),
    "text: not UTF-8": ("clip_text", "text/plain", b"\xff\xfe\xfa", 400, "invalid_encoding"),
    "text: JSON not UTF-8": ("clip_text", JSON, b'{"input": "\xff"}', 400, "invalid_encoding"),
    "text: UTF-16": ("clip_text", JSON, '{"input": "a"}'.encode("utf-16"), 400, "invalid_encoding"),
    "text: surrogate": ("clip_text", JSON, b'{"input": "\\ud800"}', 400, "invalid_encoding"),
    "text: too long": ("clip_text", "text/plain", b"a" * 20_001, 413, "text_too_long"),
    "text: too many": ("clip_text", JSON, json.dumps({"input": ["a"] * 129}).encode(), 413, "too_many_items"),
    "text: gzip": ("clip_text", JSON, zlib.compress(b'{"input": "a"}'), 400, "invalid_encoding"),
    "image: empty body": ("clip_image", None, b"", 400, "empty_request"),
    "image: form": ("clip_image", FORM, b"a=b", 415, "unsupported_media_type"),
    "image: no picture": ("clip_image", "image/png", b"hello", 415, "unsupported_image_format"),
    "image: format": ("clip_image", None, picture(1, format=UNKNOWN_FORMAT), 415, "unsupported_image_format"),
    "image: truncated": ("clip_image", None, GOOD[:-100], 400, "invalid_image"),
    "image: truncated JPEG": ("clip_image", None, picture(1, format="JPEG")[:-200], 400, "invalid_image"),
    "image: header lies": ("clip_image", None, png_of(10, 10), 400, "invalid_image"),
    "image: 13,000 x 13,000": ("clip_image", None, png_of(13_000, 13_000), 413, "image_too_large"),
    "image: bomb": ("clip_image", None, png_of(60_000, 60_000), 413, "image_too_large"),
    "image: no pixels at all": ("clip_image", None, png_of(0, 5), 415, "unsupported_image_format"),
    "image: long and thin": ("clip_image", None, picture(1, (12_000_000, 1)), 413, "image_too_large"),
    "image: bytes": ("clip_image", None, b"\0" * 20_000_001, 413, "image_too_large"),
    "image: base64": ("clip_image", JSON, b'{"input": "not*base64"}', 400, "invalid_base64"),
    "image: data URI": ("clip_image", JSON, b'{"input": "data:image/png,abc"}', 400, "invalid_base64"),
    "image: URL": ("clip_image", JSON, b'{"input": "http://127.0.0.1/a.png"}', 400, "url_not_fetched"),
    "image: file": ("clip_image", JSON, b'{"input": "file:///etc/passwd"}', 400, "url_not_fetched"),
    "image: empty item": ("clip_image", JSON, b'{"input": [""]}', 400, "empty_image"),
    "image: wrong item": ("clip_image", JSON, b'{"input": [{"url": "x"}]}', 400, "invalid_item"),
    "similarity: raw": ("clip_similarity", "image/png", GOOD, 415, "unsupported_media_type"),
    "similarity: no texts": (
        "clip_similarity",
        JSON,
        json.dumps({"images": [b64(GOOD)]}).encode(),
        400,
        "invalid_request",
    ),
    "similarity: both": (
        "clip_similarity",
        JSON,
        json.dumps({"images": [b64(GOOD)], "texts": ["a"], "labels": ["b"]}).encode(),
        400,
        "invalid_request",
    ),
    "similarity: template": (
        "clip_similarity",
        JSON,
        json.dumps({"images": [b64(GOOD)], "labels": ["b"], "template": "a photo"}).encode(),
        400,
        "invalid_request",
    ),
    "similarity: too many texts": (
        "clip_similarity",
        JSON,
        json.dumps({"images": [b64(GOOD)], "texts": ["a"] * 1001}).encode(),
        413,
        "too_many_items",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(api: Api, name: str) -> None:
    endpoint, content_type, body, status, code = REFUSED[name]
    response = api.post(endpoint, body, content_type)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), error
    assert response.headers["content-type"] == JSON
    assert 10 < len(error["message"]) < 300


def test_nul_bytes_are_text(api: Api) -> None:
    assert len(vectors(api.post_json("clip_text", {"input": ["a\0b", "\0"]}))) == 2


def test_a_body_over_the_servers_limit(api: Api) -> None:
    response = api.post("clip_image", b"\0" * (33_554_432 + 1))
    assert response.status_code == 413


def test_wrong_items_are_told_at_their_places(api: Api) -> None:
    items = [b64(GOOD), "?", b64(GOOD[:50]), {"image": b64(GOOD)}, 7]
    data = api.post_json("clip_image", {"input": items}).json()["data"]
    assert [d["object"] for d in data] == ["embedding", "error", "error", "embedding", "error"]
    assert [d["index"] for d in data] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(vector(data[0]), vector(data[3]))


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"no boundary in here",
        b"--b\r\nContent-Disposition: form-data; name=a; filename=b\r\n\r\nnever closed",
        b'--b\r\nContent-Disposition: form-data; name="\xff\xfe"; filename=b\r\n\r\nx\r\n--b--\r\n',
    ],
)
def test_damaged_multipart(api: Api, part: bytes) -> None:
    response = api.post("clip_image", part, "multipart/form-data; boundary=b")
    assert 400 <= response.status_code < 500, response.text


MULTIPART_HEADERS = [
    b"Content-Disposition: form-data",
    b"Content-Disposition: form-data; name=a; filename=b\r\nContent-Transfer-Encoding: bogus",
    b"Content-Disposition: form-data; name=a; filename=b\r\nContent-Type: text/plain; charset=bogus",
]


@pytest.mark.torchserve_only("its Java frontend's own mistake")
@pytest.mark.parametrize("headers", MULTIPART_HEADERS)
def test_multipart_that_torchserve_itself_fails_on(api: Api, headers: bytes) -> None:
    """Its Java frontend answers 500 before a worker sees the request: wrong, but it harms nobody else."""
    body = b"--b\r\n" + headers + b"\r\n\r\nx\r\n--b--\r\n"
    response = api.post("clip_image", body, "multipart/form-data; boundary=b")
    assert (response.status_code, response.json()["type"]) == (500, "ErrorDataDecoderException")
    assert len(vectors(api.post("clip_image", GOOD))) == 1


@pytest.mark.ray_only("TorchServe's own frontend fails on these")
@pytest.mark.parametrize("headers", MULTIPART_HEADERS)
def test_multipart_with_odd_headers(api: Api, headers: bytes) -> None:
    body = b"--b\r\n" + headers + b"\r\n\r\nx\r\n--b--\r\n"
    response = api.post("clip_image", body, "multipart/form-data; boundary=b")
    assert 400 <= response.status_code < 500, response.text
    assert len(vectors(api.post("clip_image", GOOD))) == 1


HEADERS: list[dict[str, Any]] = [
    {"describe": "1"},  # what TorchServe itself asks a worker for its metadata with
    {"explain": "1"},
    {"X-Odd": b"\xff\xfe\xe9"},
    {"Content-Encoding": "gzip"},
    {"X-Request-Id": "../../etc/passwd\t${jndi:ldap://127.0.0.1/a}"},
]


def test_nobody_else_is_hurt_in_a_batch(api: Api) -> None:
    """Innocent callers, and all of the above at the same time, for as long as that takes."""
    texts = [f"innocent number {i}" for i in range(8)]
    pictures = [picture(100 + i) for i in range(8)]
    # Answers of a quiet server, each asked for alone.
    expected_texts = [vectors(api.post_json("clip_text", {"input": text})) for text in texts]
    expected_pictures = [vectors(api.post("clip_image", data)) for data in pictures]
    similar = {"images": [b64(pictures[0])], "texts": texts}
    expected_similar = api.post_json("clip_similarity", similar).json()["cosine_similarity"]
    guilty = [(n, None) for n in REFUSED] + [
        (n, h) for h in HEADERS for n in ("text: NaN", "image: truncated")
    ]
    finished = threading.Event()

    def innocent(number: int) -> int:
        asked = 0
        while not finished.is_set() or asked < 5:
            text = api.post_json("clip_text", {"input": texts[number]})
            np.testing.assert_allclose(vectors(text), expected_texts[number], rtol=0, atol=2e-6)
            image = api.post("clip_image", pictures[number])
            np.testing.assert_allclose(vectors(image), expected_pictures[number], rtol=0, atol=2e-6)
            similarity = api.post_json("clip_similarity", similar)
            assert similarity.status_code == 200, similarity.text
            np.testing.assert_allclose(similarity.json()["cosine_similarity"], expected_similar, atol=2e-6)
            asked += 1
        return asked

    def bad(case: tuple[str, dict[str, Any] | None]) -> httpx.Response:
        endpoint, content_type, body, _, _ = REFUSED[case[0]]
        return api.post(endpoint, body, content_type, headers=case[1] or {})

    with ThreadPoolExecutor(16) as pool:
        innocents = [pool.submit(innocent, i) for i in range(8)]
        try:
            answers = Counter(r.status_code for r in pool.map(bad, guilty * 4))
        finally:
            finished.set()
        for future in innocents:
            future.result()
    assert set(answers) <= {400, 413, 415}, answers


def test_a_header_is_not_a_request_for_metadata(api: Api) -> None:
    response = api.post_json("clip_text", {"input": "dog"})
    same = api.post("clip_text", json.dumps({"input": "dog"}), JSON, headers={"describe": "1"})
    np.testing.assert_allclose(vectors(same), vectors(response), atol=2e-6)
