from __future__ import annotations

import base64
import json
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipserve.encoder_spec import (
    PARITY_BOUNDS,
    SCHEMA_VERSION,
    EncoderSpec,
    Golden,
    ImagePreprocessing,
    ParityCertificate,
    decode_vector,
)
from clipserve.errors import RequestError
from clipserve.similarity import cosine_similarity, softmax
from clipserve.wire.json_input import MAX_JSON_DEPTH, MAX_JSON_VALUES
from clipserve.wire.messages import Embedded, EmbeddingRequest, SimilarityRequest, Usage
from clipserve.wire.native import (
    decode_images,
    decode_similarity,
    decode_texts,
    encode_embeddings,
    encode_error,
    encode_similarity,
)
from clipserve.wire.rows import JSON, MAX_PARTS, Part, Reply, RequestLimits, Row

LIMITS = RequestLimits()
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"

PNG = b"\x89PNG\r\n\x1a\n\0\xff"
PNG_64 = base64.b64encode(PNG).decode()

Parse = Callable[[Row, RequestLimits], EmbeddingRequest[Any] | SimilarityRequest]
PARSERS: dict[str, Parse] = {
    "text": decode_texts,
    "image": decode_images,
    "similarity": decode_similarity,
}
# The field that holds the items, and a request around a value in it.
AROUND: dict[str, Callable[[Any], dict[str, Any]]] = {
    "text": lambda value: {"input": value},
    "image": lambda value: {"input": value},
    "similarity": lambda value: {"images": [PNG_64], "texts": value},
}


def json_row(value: Any) -> Row:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Row(body, JSON)


def form(*files: bytes, **fields: bytes) -> Row:
    """A multipart request: files of one name, then fields."""
    parts = [Part("file", content, "image/png") for content in files]
    return Row(b"", MULTIPART, [*parts, *(Part(name, content) for name, content in fields.items())])


def refused(parse: Parse, row: Row, limits: RequestLimits = LIMITS) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(row, limits)
    return caught.value


def assert_refused(parse: Parse, row: Row, code: str, status: int, *words: str) -> None:
    error = refused(parse, row)
    assert (error.code, error.status, error.index) == (code, status, None)
    for word in words:
        assert word in error.message


def items_of(request: EmbeddingRequest[Any] | SimilarityRequest) -> list[Any]:
    return request.items if isinstance(request, EmbeddingRequest) else [*request.images, *request.texts]


def codes(items: Sequence[Any]) -> list[Any]:
    """Items as they are, errors by code and status."""
    return [(i.code, i.status) if isinstance(i, RequestError) else i for i in items]


# ---- text requests


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/octet-stream", "text/html"])
def test_text_as_the_body(content_type: str) -> None:
    text = "két kutya\na hóban 雪 🐶 "
    request = decode_texts(Row(text.encode(), content_type), LIMITS)
    assert request == EmbeddingRequest([text], "float")


def test_empty_text_is_a_text_but_an_empty_body_is_a_mistake() -> None:
    assert decode_texts(json_row({"input": ""}), LIMITS).items == [""]
    assert_refused(decode_texts, Row(b"", "text/plain"), "empty_request", 400)


@pytest.mark.parametrize(
    ("body", "items", "encoding_format"),
    [
        ({"input": "two dogs"}, ["two dogs"], "float"),
        ({"input": ["two dogs"]}, ["two dogs"], "float"),
        ({"input": ["b", "a", "b", ""]}, ["b", "a", "b", ""], "float"),
        ({"input": "a", "encoding_format": "float"}, ["a"], "float"),
        ({"input": "a", "encoding_format": "base64"}, ["a"], "base64"),
        ({"input": "a", "encoding_format": None}, ["a"], "float"),
        ({"input": "a", "model": "clip-ViT-B-32"}, ["a"], "float"),
        ({"input": "https://example.org/a.png"}, ["https://example.org/a.png"], "float"),
        ({"input": "a\0b\u202e\uffff"}, ["a\0b\u202e\uffff"], "float"),
    ],
    ids=str,
)
def test_text_requests(body: dict[str, Any], items: list[str], encoding_format: str) -> None:
    request = decode_texts(json_row(body), LIMITS)
    assert (request.items, request.encoding_format) == (items, encoding_format)


def test_wrong_texts_become_errors_in_their_places() -> None:
    request = decode_texts(json_row({"input": ["a", 1, None, True, ["b"], {"c": 1}, "d"]}), LIMITS)
    wrong = ("invalid_item", 400)
    assert codes(request.items) == ["a", wrong, wrong, wrong, wrong, wrong, "d"]


def test_text_lengths() -> None:
    limits = RequestLimits(max_characters=5)
    request = decode_texts(json_row({"input": ["12345", "123456", "雪雪雪雪雪"]}), limits)
    assert codes(request.items) == ["12345", ("text_too_long", 413), "雪雪雪雪雪"]
    assert "6 characters, allowed are 5" in request.items[1].message  # type: ignore[union-attr]
    assert codes(decode_texts(Row(b"123456", "text/plain"), limits).items) == [("text_too_long", 413)]


def test_surrogates() -> None:
    row = json_row(b'{"input": ["\\ud83d\\ude00", "\\ud83d", "\\ude00\\ud83d", "x\\udfff", "ok"]}')
    alone = ("invalid_encoding", 400)
    assert codes(decode_texts(row, LIMITS).items) == ["\U0001f600", alone, alone, alone, "ok"]


# ---- image requests


@pytest.mark.parametrize(
    "content_type", ["image/png", "image/jpeg", "application/octet-stream", "", "text/plain"]
)
def test_image_as_the_body(content_type: str) -> None:
    assert decode_images(Row(PNG, content_type), LIMITS) == EmbeddingRequest([PNG], "float")


def test_image_files_in_order() -> None:
    assert decode_images(form(PNG, b"", b"x"), LIMITS) == EmbeddingRequest([PNG, b"", b"x"], "float")


@pytest.mark.parametrize(
    "value",
    [
        PNG_64, [PNG_64], {"image": PNG_64}, [{"image": PNG_64}], f"data:image/png;base64,{PNG_64}",
        [{"image": f"data:image/png;base64,{PNG_64}"}], f"data:;base64,{PNG_64}",
        f"data:image/png;charset=x;base64,{PNG_64}",
    ],
    ids=lambda value: json.dumps(value)[:40],
)  # fmt: skip
def test_image_requests(value: Any) -> None:
    for encoding_format in ("float", "base64"):
        row = json_row({"input": value, "encoding_format": encoding_format, "model": "x"})
        assert decode_images(row, LIMITS) == EmbeddingRequest([PNG], encoding_format)


@pytest.mark.parametrize(
    ("item", "code"),
    [
        (1, "invalid_item"), (None, "invalid_item"), (True, "invalid_item"), ([], "invalid_item"),
        ({}, "invalid_item"), ({"image": 1}, "invalid_item"), ({"text": "a"}, "invalid_item"),
        ({"image": PNG_64, "text": "a"}, "invalid_item"), ({"image": {"image": PNG_64}}, "invalid_item"),
        ("http://example.org/a.png", "url_not_fetched"), ("https://example.org/a.png", "url_not_fetched"),
        ("file:///etc/passwd", "url_not_fetched"), ("ftp://a/b", "url_not_fetched"),
        ({"image": "https://example.org/a.png"}, "url_not_fetched"),
        ("/etc/passwd!", "invalid_base64"), ("Q", "invalid_base64"), ("QQ==QQ==", "invalid_base64"),
        ("QQ===", "invalid_base64"), ("é", "invalid_base64"), ("\ud800", "invalid_base64"),
        ("data:image/png,abc", "invalid_base64"), ("data:image/png;base64", "invalid_base64"),
        ("data:", "invalid_base64"), ("data:image/png;base64,???", "invalid_base64"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)  # fmt: skip
def test_wrong_images_become_errors_in_their_places(item: Any, code: str) -> None:
    request = decode_images(json_row({"input": [PNG_64, item, {"image": PNG_64}]}), LIMITS)
    assert codes(request.items) == [PNG, (code, 400), PNG]


@pytest.mark.parametrize(
    "text",
    [
        base64.encodebytes(PNG * 50).decode(),
        base64.encodebytes(PNG * 50).decode().replace("\n", "\r\n"),
        base64.urlsafe_b64encode(PNG * 50).decode(),
        base64.b64encode(PNG * 50).decode().rstrip("="),
        base64.urlsafe_b64encode(PNG * 50).decode().rstrip("=") + "\n",
        "data:image/png;base64," + base64.encodebytes(PNG * 50).decode(),
        "DATA:image/png;BASE64," + base64.urlsafe_b64encode(PNG * 50).decode(),
    ],
    ids=["lines", "MIME", "URL-safe", "no padding", "both", "data: in lines", "DATA: URL-safe"],
)
def test_base64_as_it_is_written_elsewhere(text: str) -> None:
    """CASES 23."""
    assert len(PNG * 50) % 3  # it has padding
    assert decode_images(json_row({"input": text}), LIMITS).items == [PNG * 50]
    row = json_row({"images": [{"image": text}], "texts": "a"})
    assert decode_similarity(row, LIMITS).images == [PNG * 50]


def test_what_is_wrong_with_base64_is_named() -> None:
    """CASES 23."""
    request = decode_images(json_row({"input": ["QQ%3D", "QQ=Q"]}), LIMITS)
    first, second = (str(item) for item in request.items)
    assert "'%' at character 3" in first
    assert "not base64" in second


# ---- forms


def test_files_of_one_name_are_all_taken() -> None:
    """CASES 1: browsers' `multiple` and FormData send them so."""
    parts = [Part("a", PNG, "image/png"), Part("a", b"x", "image/jpeg"), Part("a", PNG, "")]
    assert decode_images(Row(b"", MULTIPART, parts), LIMITS).items == [PNG, b"x", PNG]
    row = Row(b"", MULTIPART, [*parts, Part("texts", b'["a"]')])
    assert decode_similarity(row, LIMITS) == SimilarityRequest([PNG, b"x", PNG], ["a"])


@pytest.mark.parametrize("name", ["texts", "labels", "template", "model"])
def test_a_field_that_is_given_twice_loses_nothing(name: str) -> None:
    """CASES 1: of two lists of texts one would be dropped."""
    twice = [Part("a", PNG, "image/png"), Part("texts", b'["a"]'), *[Part(name, b'["b"]')] * 2]
    error = refused(decode_similarity, Row(b"", MULTIPART, twice))
    assert (error.code, error.status) == ("invalid_request", 400)
    assert "twice" in error.message


def test_encoding_format_of_a_form() -> None:
    """CASES 59."""
    assert decode_images(form(PNG, encoding_format=b"base64"), LIMITS).encoding_format == "base64"
    assert decode_images(form(PNG, encoding_format=b"float", model=b"x"), LIMITS) == EmbeddingRequest(
        [PNG], "float"
    )
    assert_refused(decode_images, form(PNG, encoding_format=b"hex"), "invalid_request", 400, "'hex'")


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        *(("image", name) for name in ("texts", "input", "file", "", "x")),
        *(("similarity", name) for name in ("encoding_format", "images", "")),
    ],
)
def test_unknown_fields_of_a_form(endpoint: str, name: str) -> None:
    """CASES 59: never ignored. A picture without a file name is a field: TorchServe reads it as text."""
    row = Row(b"", MULTIPART, [Part("a", PNG, "image/png"), Part("labels", b'"a"'), Part(name, b"1")])
    if endpoint == "image":
        row = Row(b"", MULTIPART, [Part("a", PNG, "image/png"), Part(name, b"1")])
    assert_refused(PARSERS[endpoint], row, "invalid_request", 400, "unknown field", "file name")


def test_very_many_parts() -> None:
    """ATTACKS A10."""
    error = refused(decode_similarity, form(*[b""] * (MAX_PARTS + 1)))
    assert (error.code, error.status) == ("too_many_items", 413)
    assert str(MAX_PARTS) in error.message


# ---- what a body is


REQUEST = json.dumps({"input": ["a", "b"]}).encode()


@pytest.mark.parametrize(
    "content_type",
    [
        *(JSON, "text/json", "application/x-json", "text/x-json", "application/vnd.api+json", "model/x+JSON"),
        *(
            "Text/JSON; charset=UTF-8",
            'application/json; charset="utf-8"',
            "application/json;charset=us-ascii",
        ),
        *("", "application/octet-stream"),
    ],
)
def test_json_by_all_its_names_and_without_one(content_type: str) -> None:
    """CASES 2: its characters are never what is embedded."""
    assert decode_texts(Row(REQUEST, content_type), LIMITS).items == ["a", "b"]
    assert decode_texts(Row(b" \r\n\t" + REQUEST, content_type), LIMITS).items == ["a", "b"]
    image = json.dumps({"input": PNG_64}).encode()
    assert decode_images(Row(image, content_type), LIMITS).items == [PNG]
    both = json.dumps({"images": PNG_64, "texts": "a"}).encode()
    assert decode_similarity(Row(both, content_type), LIMITS) == SimilarityRequest([PNG], ["a"])


@pytest.mark.parametrize("content_type", ["", "application/octet-stream", "text/json"])
def test_damaged_json_is_no_text(content_type: str) -> None:
    """CASES 2."""
    assert_refused(decode_texts, Row(b'{"input": ["a",]}', content_type), "invalid_json", 400)


@pytest.mark.parametrize("content_type", ["text/plain", "text/plain;charset=UTF-8", "text/html", "image/png"])
@pytest.mark.parametrize("body", [REQUEST, b' {"input": "a"} '])
def test_json_under_another_type(content_type: str, body: bytes) -> None:
    """CASES 2: a browser's `fetch` with a string says text/plain."""
    for parse in (decode_texts, decode_images):
        assert_refused(parse, Row(body, content_type), "unsupported_media_type", 415, "is JSON", JSON)


def test_texts_that_only_look_like_json() -> None:
    """CASES 2: the opposite."""
    for text in ("{two} dogs", "[laughs] two dogs", "{", "[" * 5000, '"two dogs"', "5", "null"):
        assert decode_texts(Row(text.encode(), "text/plain"), LIMITS).items == [text]
    assert decode_texts(Row(b"[laughs] two dogs", ""), LIMITS).items == ["[laughs] two dogs"]
    assert_refused(decode_texts, Row(b'["a", "b"]', ""), "unsupported_media_type", 415)


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": "a", "input": "b"}',
        b'{"input": NaN}',
        b'{"input": "a"}\n{"input": "b"}\n',
        b'\xef\xbb\xbf{"input": ["a", "b"]}',
        b'\xef\xbb\xbf["a", "b"]',
    ],
)
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-ndjson", "application/jsonl"])
def test_json_that_is_no_request_is_no_text_either(body: bytes, content_type: str) -> None:
    """CASES 2: a key twice, a request a line, the mark that PowerShell writes: never their characters."""
    assert_refused(decode_texts, Row(body, content_type), "unsupported_media_type", 415, "is JSON")


def test_a_byte_order_mark_is_no_text() -> None:
    """CASES 2, 12: of a text it is taken off; JSON with one is JSON, and refused as that."""
    mark = b"\xef\xbb\xbf"
    assert decode_texts(Row(mark + b"two dogs", "text/plain"), LIMITS).items == ["two dogs"]
    for content_type in ("", "application/octet-stream"):
        for parse in (decode_texts, decode_images):
            assert_refused(parse, Row(mark + REQUEST, content_type), "invalid_json", 400)


@pytest.mark.parametrize("charset", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_utf16_without_a_charset(charset: str) -> None:
    """CASES 12: what is ASCII is valid UTF-8 as well, with zero bytes."""
    row = Row("two dogs".encode(charset), "text/plain")
    assert_refused(decode_texts, row, "invalid_encoding", 400, "zero byte", "UTF-8")


@pytest.mark.parametrize("charset", ["utf-16", "UTF-16LE", "iso-8859-1", '"windows-1252"', "x", ""])
def test_another_charset(charset: str) -> None:
    """CASES 12."""
    refusal = ("unsupported_media_type", 415, "charset", "UTF-8")
    for content_type in ("text/plain", "text/html", "text/json", JSON, MULTIPART, ""):
        row = Row(REQUEST, f"{content_type}; x=y; Charset = {charset}")
        for parse in PARSERS.values():
            assert_refused(parse, row, *refusal)
    part = Part("texts", b'["a"]', f"application/json; charset={charset}")
    row = Row(b"", MULTIPART, [Part("a", PNG, "image/png"), part])
    assert_refused(decode_similarity, row, *refusal)
    # Of bytes that are no text it says nothing.
    assert decode_images(Row(PNG, f"image/png; charset={charset}"), LIMITS).items == [PNG]


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate", "x", "gzip, identity"])
def test_a_compressed_body(encoding: str) -> None:
    """CASES 25."""
    for parse in PARSERS.values():
        for content_type in (JSON, "text/plain", "image/png", "", MULTIPART):
            row = Row(b"\x1f\x8b", content_type, (), encoding)
            assert_refused(parse, row, "unsupported_media_type", 415, "Content-Encoding", encoding)
    assert decode_images(Row(PNG, "", (), "Identity"), LIMITS).items == [PNG]


# ---- similarity requests


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({"texts": ["two dogs", "a cat"]}, ["two dogs", "a cat"]),
        ({"texts": "two dogs"}, ["two dogs"]),
        ({"labels": ["dog", "cat"]}, ["dog", "cat"]),
        ({"labels": "dog"}, ["dog"]),
        ({"labels": ["dog", "cat"], "template": "a photo of {}."}, ["a photo of dog.", "a photo of cat."]),
        ({"labels": ["dog"], "template": None}, ["dog"]),
        ({"labels": ["{}", "{0}"], "template": "<{}> {x} %s"}, ["<{}> {x} %s", "<{0}> {x} %s"]),
        ({"texts": ["a {} b"]}, ["a {} b"]),
    ],
    ids=str,
)  # fmt: skip
def test_similarity_requests(fields: dict[str, Any], texts: list[str | RequestError]) -> None:
    request = decode_similarity(json_row({"images": [PNG_64], **fields, "model": "x"}), LIMITS)
    assert request == SimilarityRequest([PNG], texts)
    # The same as a form with files.
    row = form(
        *(PNG, b"x"),
        **{
            name: value.encode() if name == "template" else json.dumps(value).encode()
            for name, value in fields.items()
            if value is not None
        },
    )
    assert decode_similarity(row, LIMITS) == SimilarityRequest([PNG, b"x"], texts)


@pytest.mark.parametrize("images", [PNG_64, {"image": PNG_64}, [PNG_64], [{"image": PNG_64}]], ids=str)
def test_similarity_images(images: Any) -> None:
    request = decode_similarity(json_row({"images": images, "texts": "a"}), LIMITS)
    assert request == SimilarityRequest([PNG], ["a"])


def test_wrong_items_of_a_similarity_request_become_errors_in_their_places() -> None:
    row = json_row({"images": [1, PNG_64, "http://a"], "labels": ["a", 2, "x" * 15], "template": "so {}"})
    request = decode_similarity(row, RequestLimits(max_characters=17))
    assert codes(request.images) == [("invalid_item", 400), PNG, ("url_not_fetched", 400)]
    # The limit is of the text that is embedded: the label in its template.
    assert codes(request.texts) == ["so a", ("invalid_item", 400), ("text_too_long", 413)]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"texts": ["a"]}, ["'images'", "missing"]),
        ({"images": [PNG_64]}, ["'texts'", "missing"]),
        ({"images": [PNG_64], "template": "{}"}, ["'template'", "'labels'"]),
        ({"images": [PNG_64], "texts": ["a"], "template": "{}"}, ["'template'", "'labels'"]),
        ({"images": [PNG_64], "texts": ["a"], "labels": ["a"]}, ["'texts'", "'labels'"]),
        ({"images": [PNG_64], "labels": ["a"], "template": "no place"}, ["'template'", "{}"]),
        ({"images": [PNG_64], "labels": ["a"], "template": "{} {}"}, ["'template'", "{}"]),
        ({"images": [PNG_64], "labels": ["a"], "template": 5}, ["'template'", "5"]),
        ({"images": [PNG_64], "labels": ["a"], "template": ["{}"]}, ["'template'", "a list"]),
        ({"images": 5, "texts": ["a"]}, ["'images'", "5"]),
        ({"images": None, "texts": ["a"]}, ["'images'", "null"]),
        ({"images": [PNG_64], "texts": {"a": 1}}, ["'texts'", "an object"]),
        ({"images": [PNG_64], "texts": None}, ["'texts'", "null"]),
        ({"input": [PNG_64], "texts": ["a"]}, ["unknown field 'input'", "images"]),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_similarity_requests(body: dict[str, Any], words: list[str]) -> None:
    assert_refused(decode_similarity, json_row(body), "invalid_request", 400, *words)


def test_wrong_similarity_forms() -> None:
    parse = decode_similarity
    assert_refused(parse, form(PNG), "invalid_request", 400, "'texts'")
    assert_refused(parse, form(texts=b'["a"]'), "empty_request", 400, "files")
    assert_refused(parse, form(PNG, texts=b"two dogs"), "invalid_json", 400, "'texts'")
    assert_refused(parse, form(PNG, labels=b"\xff"), "invalid_encoding", 400)
    assert_refused(parse, form(PNG, labels=b'"a"', template=b"\xff"), "invalid_encoding", 400)
    assert_refused(parse, form(PNG, labels=b"[]"), "empty_request", 400, "'labels'")
    assert_refused(parse, form(PNG, labels=b"[" * 100_000), "invalid_json", 400, "deep")


@pytest.mark.parametrize("content_type", ["image/png", "text/plain", "", "application/octet-stream"])
def test_similarity_takes_json_or_a_form(content_type: str) -> None:
    assert_refused(decode_similarity, Row(PNG, content_type), "unsupported_media_type", 415, JSON)


# ---- what is wrong with requests of every endpoint

ENDPOINTS = pytest.mark.parametrize("endpoint", PARSERS)


@ENDPOINTS
@pytest.mark.parametrize("content_type", [FORM, MULTIPART])
def test_forms_without_a_file(endpoint: str, content_type: str) -> None:
    row = Row(b"input=a" if content_type == FORM else b"", content_type)
    assert_refused(PARSERS[endpoint], row, "unsupported_media_type", 415, content_type, JSON)


@ENDPOINTS
@pytest.mark.parametrize("body", [PNG, b"two dogs", REQUEST])
def test_forms_that_no_server_could_read(endpoint: str, body: bytes) -> None:
    """CASES 1: a multipart type without a boundary; whatever the body is, it is not what it says."""
    row = Row(body, "multipart/form-data")
    assert_refused(
        PARSERS[endpoint], row, "invalid_request", 400, "multipart body cannot be read", "boundary"
    )


@ENDPOINTS
def test_empty_json_bodies(endpoint: str) -> None:
    assert_refused(PARSERS[endpoint], Row(b"", JSON), "empty_request", 400)


def test_empty_image_body() -> None:
    assert_refused(decode_images, Row(b"", "image/png"), "empty_request", 400)


@ENDPOINTS
@pytest.mark.parametrize(
    "body",
    [
        b"{", b"{'input': 'a'}", b'{"input": "a",}', b"input", b"\0", b'{"input": "a"} x', b'{"input": "\n"}',
        b'{"input": "\\x"}', b'{"input": "\\u12"}', b'{"input": NaN}', b'{"input": [-Infinity]}',
        b'{"input": Infinity}', b'{"input": "a", "input": "b"}', b'{"a": {"b": 1, "b": 1}}',
        b'{"\\u0061": 1, "a": 2}', b'\xef\xbb\xbf{"input": "a"}', b'{"input": ' + b"9" * 5000 + b"}",
        b"[" * 100_000, b'{"input":' * 100_000, b"[" * 33 + b"]" * 33, b"]" * 100_000 + b"[" * 100_000,
        b'{"input":[' + b"[" * 40 + b'"' + b"]" * 40,
    ],
    ids=lambda body: repr(body[:30]),
)  # fmt: skip
def test_invalid_json(endpoint: str, body: bytes) -> None:
    error = refused(PARSERS[endpoint], json_row(body))
    assert (error.code, error.status) == ("invalid_json", 400)
    assert len(error.message) < 200


@ENDPOINTS
@pytest.mark.parametrize(
    "body", [b"\xff", b'{"input": "\xe9"}', '{"input": "a"}'.encode("utf-16"), b"\xed\xa0\x80"]
)
def test_bodies_that_are_not_utf_8(endpoint: str, body: bytes) -> None:
    assert_refused(PARSERS[endpoint], json_row(body), "invalid_encoding", 400, "UTF-8")


def test_text_body_that_is_not_utf_8() -> None:
    assert_refused(decode_texts, Row("é".encode("latin-1"), "text/plain"), "invalid_encoding", 400)


@ENDPOINTS
@pytest.mark.parametrize("body", [[], ["a"], "a", 5, 1.5, None, True, [[{}]]], ids=str)
def test_json_that_is_no_object(endpoint: str, body: Any) -> None:
    assert_refused(PARSERS[endpoint], json_row(body), "invalid_request", 400, "should be a JSON object")


@ENDPOINTS
def test_unknown_fields_are_named_with_what_is_allowed(endpoint: str) -> None:
    body = {**AROUND[endpoint]("QQ=="), "dimensions": 5}
    words = ("'dimensions'", *AROUND[endpoint]("QQ=="))
    assert_refused(PARSERS[endpoint], json_row(body), "invalid_request", 400, *words)


@ENDPOINTS
def test_missing_items(endpoint: str) -> None:
    assert_refused(PARSERS[endpoint], json_row({}), "invalid_request", 400, "missing")
    assert_refused(PARSERS[endpoint], json_row(AROUND[endpoint]([])), "empty_request", 400, "no items")


@ENDPOINTS
@pytest.mark.parametrize("value", [5, 0, -1.5, None, True, False], ids=str)
def test_items_that_are_no_list(endpoint: str, value: Any) -> None:
    row = json_row(AROUND[endpoint](value))
    assert_refused(PARSERS[endpoint], row, "invalid_request", 400, json.dumps(value), "should be a list")


@pytest.mark.parametrize("endpoint", ["text", "image"])
@pytest.mark.parametrize("value", ["int8", "", "FLOAT", 5, True, [], {}, ["float"]], ids=str)
def test_encoding_formats(endpoint: str, value: Any) -> None:
    row = json_row({"input": "QQ==", "encoding_format": value})
    assert_refused(PARSERS[endpoint], row, "invalid_request", 400, "'float' and 'base64'")


def test_item_counts() -> None:
    limits = RequestLimits(max_items=3, max_texts=5)

    def status(parse: Parse, row: Row) -> int:
        error = refused(parse, row, limits)
        assert error.code == "too_many_items"
        assert "allowed are" in error.message
        return error.status

    for name in ("text", "image"):
        assert len(items_of(PARSERS[name](json_row({"input": ["QQ=="] * 3}), limits))) == 3
        assert status(PARSERS[name], json_row({"input": ["QQ=="] * 4})) == 413
    assert status(decode_images, form(*[PNG] * 4)) == 413
    assert status(decode_similarity, form(*[PNG] * 4, texts=b'["a"]')) == 413
    fitting = decode_similarity(json_row({"images": ["QQ=="] * 3, "texts": ["a"] * 5}), limits)
    assert (len(fitting.images), len(fitting.texts)) == (3, 5)
    for body in (
        {"images": ["QQ=="] * 4, "texts": ["a"]},
        {"images": ["QQ=="], "texts": ["a"] * 6},
        {"images": ["QQ=="], "labels": ["a"] * 6},
    ):
        assert status(decode_similarity, json_row(body)) == 413


@ENDPOINTS
def test_deepest_admitted_nesting_is_read(endpoint: str) -> None:
    levels = MAX_JSON_DEPTH - 2
    value = json.loads("[" * levels + "]" * levels)
    assert "invalid_item" in [
        e.code
        for e in items_of(PARSERS[endpoint](json_row(AROUND[endpoint]([value])), LIMITS))
        if isinstance(e, RequestError)
    ]


@ENDPOINTS
def test_brackets_inside_strings_are_no_nesting(endpoint: str) -> None:
    text = '\\"[' * 1000 + "{" * 1000
    request = PARSERS[endpoint](json_row(AROUND[endpoint]([text])), LIMITS)
    assert items_of(request)[-1] == text or endpoint == "image"


@ENDPOINTS
@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"9" * 4000, b"0." + b"1" * 5000, b"1E400", b"-0"])
def test_numbers_of_any_size(endpoint: str, number: bytes) -> None:
    body = json.dumps(AROUND[endpoint]("@")).encode()
    error = refused(PARSERS[endpoint], json_row(body.replace(b'"@"', number)))
    assert (error.code, error.status) == ("invalid_request", 400)
    assert len(error.message) < 200
    request = PARSERS[endpoint](json_row(body.replace(b'"@"', b"[" + number + b"]")), LIMITS)
    assert codes(items_of(request))[-1] == ("invalid_item", 400)


@ENDPOINTS
def test_many_keys_are_no_burden(endpoint: str) -> None:
    body = json.dumps({f"k{i}": 0 for i in range(200_000)}).encode()
    assert_refused(PARSERS[endpoint], json_row(body), "invalid_request", 400, "unknown field")


def test_long_template_with_many_labels_is_no_burden() -> None:
    """300 kB of request must not become 100 MB of texts that are then all refused."""
    body = {"images": [PNG_64], "labels": ["a"] * 500, "template": "x" * 200_000 + "{}"}
    row = json_row(body)
    tracemalloc.start()
    try:
        outcome = outcome_of(decode_similarity, row)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(outcome, RequestError) or all(
        isinstance(t, RequestError) for t in items_of(outcome)[1:]
    )
    assert peak < 10_000_000


# ---- any input at all


def outcome_of(parse: Parse, row: Row) -> EmbeddingRequest[Any] | SimilarityRequest | RequestError:
    """What a request comes to; anything raised but a `RequestError` fails the test."""
    try:
        return parse(row, LIMITS)
    except RequestError as error:
        return error


def assert_answerable(outcome: EmbeddingRequest[Any] | SimilarityRequest | RequestError) -> None:
    """Errors are 4xx with a short message that has a JSON form; what is no error is an item."""
    items: list[Any] = [outcome] if isinstance(outcome, RequestError) else items_of(outcome)
    assert items
    for item in items:
        if isinstance(item, RequestError):
            assert 400 <= item.status < 500
            # At most 40 characters of payload, each of which may be escaped with ten.
            assert len(item.message) < 600
            assert json.loads(encode_error(item).body)["error"]["code"] == item.code
        else:
            assert isinstance(item, str | bytes)
    texts = [item for item in items if isinstance(item, str)]
    # What goes to a tokenizer has a UTF-8 form.
    assert all(text.encode().decode() == text for text in texts)


CONTENT_TYPES = st.sampled_from(
    [JSON, "text/plain", "", FORM, MULTIPART, "image/png", "application/octet-stream"]
)
FIELDS = st.sampled_from(
    ["input", "encoding_format", "model", "images", "texts", "labels", "template", "image", ""]
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["{}", "float", "base64", "QQ==", "data:;base64,QQ==", "http://a", "\ud800", "\0"]),
    st.characters(categories=["Cs"]),
    st.text(min_size=100, max_size=300),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(FIELDS | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)


@ENDPOINTS
@settings(max_examples=150, deadline=None)
@given(body=st.binary(max_size=200), content_type=CONTENT_TYPES)
def test_arbitrary_bytes(endpoint: str, body: bytes, content_type: str) -> None:
    assert_answerable(outcome_of(PARSERS[endpoint], Row(body, content_type)))


@ENDPOINTS
@settings(max_examples=150, deadline=None)
@given(value=VALUES, ascii=st.booleans())
def test_arbitrary_json(endpoint: str, value: Any, ascii: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    assert_answerable(outcome_of(PARSERS[endpoint], json_row(body)))


@ENDPOINTS
@settings(max_examples=250, deadline=None)
@given(fields=st.dictionaries(FIELDS, VALUES, max_size=4))
def test_arbitrary_values_in_known_fields(endpoint: str, fields: dict[str, Any]) -> None:
    assert_answerable(outcome_of(PARSERS[endpoint], json_row({**AROUND[endpoint](["QQ=="]), **fields})))
    assert_answerable(outcome_of(PARSERS[endpoint], json_row(fields)))


@ENDPOINTS
@settings(max_examples=150, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 5), st.binary(max_size=4)), max_size=4))
def test_damaged_json(endpoint: str, edits: list[tuple[int, int, bytes]]) -> None:
    body = json.dumps({**AROUND[endpoint](["QQ==", {"image": "QQ=="}, 'é\\"[{']), "model": "m"}).encode()
    for place, length, replacement in edits:
        body = body[:place] + replacement + body[place + length :]
    assert_answerable(outcome_of(PARSERS[endpoint], json_row(body)))


@ENDPOINTS
@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(
        st.builds(
            Part,
            FIELDS | st.text(max_size=5),
            st.binary(max_size=30),
            st.sampled_from([None, "image/png", "text/plain; charset=utf-16", ""]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_arbitrary_forms(endpoint: str, parts: list[Part]) -> None:
    assert_answerable(outcome_of(PARSERS[endpoint], Row(b"", MULTIPART, parts)))


LONG = "漢" * 5000


@ENDPOINTS
@pytest.mark.parametrize(
    "row",
    [
        json_row({LONG: 1}), json_row(LONG), json_row([LONG]),
        json_row({"input": LONG, "encoding_format": LONG}),
        json_row({"input": [LONG * 5]}), json_row({"input": "http://" + LONG}),
        json_row({"input": "data:" + LONG}),
        json_row({"input": [{"image": LONG}, {LONG: LONG}, [LONG]]}), json_row({"input": {LONG: LONG}}),
        json_row({"images": [LONG, "https://" + LONG, {LONG: 1}], "texts": [LONG * 5]}),
        json_row({"images": LONG, "labels": "a", "template": LONG}),
        json_row({"images": "", "texts": {LONG: 1}}),
        json_row(json.dumps({LONG: 1}, ensure_ascii=False).replace(": 1", ': 1, "' + LONG + '": 2').encode()),
        json_row(LONG.encode()), json_row(b'"' + LONG.encode()), json_row(LONG.encode() + b"\xff"),
        Row(LONG.encode() + b"\xff", "text/plain"), Row(LONG.encode() * 5, "text/plain"),
        form(b"", texts=LONG.encode()), form(b"", labels=b'"a"', template=LONG.encode()),
        Row(b"", MULTIPART, [Part(LONG, b"")]), Row(b"a", "text/plain; charset=" + LONG),
        Row(b"a", "", (), LONG), Row(b"{", LONG),
    ],
)  # fmt: skip
def test_messages_never_repeat_a_payload(endpoint: str, row: Row) -> None:
    outcome = outcome_of(PARSERS[endpoint], row)
    items = [outcome] if isinstance(outcome, RequestError) else items_of(outcome)
    for error in (item for item in items if isinstance(item, RequestError)):
        assert error.message.count("漢") <= 40
        assert len(error.message) < 250


def test_messages_never_repeat_a_long_content_type() -> None:
    assert len(refused(decode_similarity, Row(b"", "a/" + "b" * 5000)).message) < 250


def test_nesting_does_not_depend_on_the_recursion_limit() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        assert refused(decode_texts, json_row(b"[" * 1_000_000)).code == "invalid_json"
    finally:
        sys.setrecursionlimit(before)


@pytest.fixture
def no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused is refused before it is parsed."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr("clipserve.wire.json_input.json.loads", fail)


# So large that what is not linear in it never ends: the first took 27 s at 64 kB, as 64 million steps do.
MEGABYTES = 8_000_000


@ENDPOINTS
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 33 + b'"' + b'\\"' * (MEGABYTES // 2), "deeper"),
        (b"[" * 33 + b'"' + b"\\" * MEGABYTES, "deeper"),
        (b'{"input": [' + (b"[" * 30 + b"]" * 30 + b",") * (MEGABYTES // 61), "lists and objects"),
        (b'{"input": [' + b"{}," * (MEGABYTES // 3), "lists and objects"),
        (b"[" + b"{" * 40 + b'""' * (MEGABYTES // 2), "strings"),
        (b"[" + b"1," * (MEGABYTES // 2), "values"),
        (b"[" * MEGABYTES, "lists and objects"),
        (b'{"input": [' + b'"a",' * MAX_JSON_VALUES, "values"),
    ],
    ids=["A1", "A1 backslashes", "A3", "objects", "strings", "numbers", "brackets", "texts"],
)
@pytest.mark.usefixtures("no_parser")
def test_bodies_that_would_cost_much(endpoint: str, body: bytes, words: str) -> None:
    """ATTACKS A1, A3."""
    error = refused(PARSERS[endpoint], json_row(body))
    assert error.code in ("invalid_json", "too_many_items")
    assert words in error.message


def test_a_string_that_never_ends() -> None:
    """ATTACKS A1: shallow, so that the parser sees it."""
    body = b'{"input": "' + b'\\"' * (MEGABYTES // 2)
    assert_refused(decode_texts, json_row(body), "invalid_json", 400)


@pytest.mark.parametrize(
    "text", ["\\", '\\"', '"', '\\\\"[', "[{,:" * 4000, '"[' * 5000, "\\[" * 5000, "[" * 10_000]
)
def test_brackets_in_texts_are_not_counted(text: str) -> None:
    """ATTACKS A1, A3: what is counted is outside of strings, whatever these hold."""
    for texts in ([text] * 24, [text, "[" * 100], ["\\", text, "[" * 100]):
        assert decode_texts(json_row({"input": texts}), LIMITS).items == texts


def test_all_characters_of_a_request() -> None:
    """ATTACKS A7."""
    limits = RequestLimits(max_characters=40, max_total_characters=100)
    assert decode_texts(json_row({"input": ["x" * 25] * 4}), limits).items == ["x" * 25] * 4
    image = {"images": PNG_64}
    for parse, body in (
        (decode_texts, {"input": ["x" * 25] * 4 + ["y"]}),
        (decode_similarity, image | {"texts": ["x" * 25] * 4 + ["y"]}),
        (decode_similarity, image | {"labels": ["x" * 25] * 4, "template": "{}."}),
        (decode_similarity, image | {"labels": [""] * 11, "template": "x" * 10 + "{}"}),
    ):
        error = refused(parse, json_row(body), limits)
        assert (error.code, error.status, error.index) == ("text_too_long", 413, None)
        assert "allowed are 100" in error.message
    fitting = image | {"labels": ["x" * 24] * 4, "template": "{}."}
    assert len(decode_similarity(json_row(fitting), limits).texts) == 4


def test_characters_are_counted_before_labels_are_put_into_a_template() -> None:
    """ATTACKS A7: 1,000 times 20,000 would be 80 MB."""
    body = {"images": PNG_64, "labels": ["dog"] * 1000, "template": "🐶" * 19_998 + "{}"}
    row = json_row(body)
    tracemalloc.start()
    try:
        error = refused(decode_similarity, row)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.code == "text_too_long"
    assert peak < 4_000_000


# ---- responses


def spec(logit_scale: float = 100.0) -> EncoderSpec:
    return EncoderSpec(
        schema_version=SCHEMA_VERSION,
        format="torchscript",
        cpu_capability=None,
        model_id="clip-ViT-B-32",
        checkpoint="clip-ViT-B-32",
        modality="image",
        embedding_dim=3,
        normalized=True,
        device="cpu",
        precision="fp32",
        image=ImagePreprocessing(224, 224, 224, "bicubic", (0.5,) * 3, (0.25,) * 3),
        text=None,
        logit_scale=logit_scale,
        checkpoint_sha256="c",
        artifact_sha256="t",
        space_id="0123456789abcdef",
        versions={},
        certificate=ParityCertificate(PARITY_BOUNDS["fp32"], 0.0, 1.0, (), Golden("", "")),
    )


def vector(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, dtype=np.float32)


def body_of(reply: Reply) -> Any:
    """The parsed body, after checking that it is valid, compact JSON in UTF-8."""

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert reply.content_type == JSON
    text = reply.body.decode("utf-8")
    body = json.loads(text, parse_constant=no_constant)
    assert text == json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    return body


def test_embedding_response() -> None:
    results: list[Embedded | RequestError] = [
        Embedded(vector(0.6, -0.8, 0.1), Usage(7, 1, 2)),
        RequestError("invalid_image", "broken “file”"),
        Embedded(vector(1, 0, 0), Usage(3)),
    ]
    reply = encode_embeddings(spec(), results, "float")
    assert reply.status == 200
    body = body_of(reply)
    first = body["data"][0].pop("embedding")
    assert body == {
        "object": "list",
        "model": "clip-ViT-B-32",
        "space_id": "0123456789abcdef",
        "embedding_dim": 3,
        "data": [
            {"object": "embedding", "index": 0},
            {"object": "error", "index": 1, "error": {"code": "invalid_image", "message": "broken “file”"}},
            {"object": "embedding", "index": 2, "embedding": [1.0, 0.0, 0.0]},
        ],
        "usage": {"prompt_tokens": 10, "truncated": 1, "unknown_tokens": 2},
    }
    assert np.array_equal(np.array(first, dtype=np.float32), vector(0.6, -0.8, 0.1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=20))
def test_base64_and_float_say_the_same_float32(values: list[float]) -> None:
    result = [Embedded(vector(*values))]
    floats = body_of(encode_embeddings(spec(), result, "float"))["data"][0]["embedding"]
    text = body_of(encode_embeddings(spec(), result, "base64"))["data"][0]["embedding"]
    assert base64.b64decode(text, validate=True) == np.array(floats, dtype="<f4").tobytes()
    assert np.array_equal(decode_vector(text), vector(*values))
    assert decode_vector(text).dtype == np.float32


def test_response_without_any_success_is_the_first_error_with_its_index() -> None:
    errors = [RequestError("image_too_large", "big", 413), RequestError("invalid_image", "bad")]
    reply = encode_embeddings(spec(), errors, "float")
    assert reply.status == 413
    assert body_of(reply) == {"error": {"code": "image_too_large", "message": "big", "index": 0}}


def test_error_response() -> None:
    reply = encode_error(RequestError("invalid_json", "漢 \ud800"[:1], 400))
    assert reply.status == 400
    assert body_of(reply) == {"error": {"code": "invalid_json", "message": "漢"}}


def at_cosine(cosine: float) -> Embedded:
    """A text at this cosine from (1, 0, 0)."""
    return Embedded(vector(cosine, np.sqrt(1 - cosine**2), 0), Usage(5))


KNOWN_COSINES = [0.30857948, 0.10379046, 0.14382527]
KNOWN_PROBABILITIES = [0.9999999, 1.2768e-9, 6.9954e-8]


def test_softmax_known_answer() -> None:
    """The printed example of the SDK that this project follows."""
    probabilities = softmax(100 * np.array([KNOWN_COSINES]))
    np.testing.assert_allclose(probabilities[0], KNOWN_PROBABILITIES, rtol=2e-4)
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-15)


def test_softmax_of_logits_that_would_overflow() -> None:
    assert softmax(np.array([[1e6, 0.0, 1e6], [-1e6, -1e6, -1e6]])).tolist() == [
        [0.5, 0, 0.5],
        pytest.approx([1 / 3] * 3),
    ]


def test_similarity_known_answer() -> None:
    reply = encode_similarity(spec(), [Embedded(vector(1, 0, 0))], [at_cosine(c) for c in KNOWN_COSINES])
    assert reply.status == 200
    body = body_of(reply)
    np.testing.assert_allclose(body["cosine_similarity"], [KNOWN_COSINES], atol=1e-7)
    np.testing.assert_allclose(body["probabilities"], [KNOWN_PROBABILITIES], rtol=1e-3)
    assert {key: body[key] for key in body if key not in ("cosine_similarity", "probabilities")} == {
        "object": "similarity",
        "model": "clip-ViT-B-32",
        "space_id": "0123456789abcdef",
        "embedding_dim": 3,
        "logit_scale": 100.0,
        "errors": [],
        "usage": {"prompt_tokens": 15, "truncated": 0, "unknown_tokens": 0},
    }


def test_similarity_uses_the_logit_scale_of_the_spec() -> None:
    images, texts = [Embedded(vector(1, 0, 0))], [at_cosine(0.5), at_cosine(0.25)]
    body = body_of(encode_similarity(spec(logit_scale=4.0), images, texts))
    expected = 1 / (1 + np.exp(-4.0 * 0.25))
    np.testing.assert_allclose(body["probabilities"][0], [expected, 1 - expected], rtol=1e-6)


def test_cosines_do_not_depend_on_lengths_and_stay_within_1() -> None:
    images = np.array([[3, 4, 0], [1e-6, 1e-6, 1e-6]], dtype=np.float32)
    texts = np.array([[0.6, 0.8, 0], [-30, -40, 0], [1e5, 1e5, 1e5]], dtype=np.float32)
    found = cosine_similarity(images, texts)
    expected = [[1, -1, 7 / 5 / 3**0.5], [7 / 5 / 3**0.5, -7 / 5 / 3**0.5, 1]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.max() <= 1
    assert found.min() >= -1
    # The caller's arrays stay as they were.
    assert images[0].tolist() == [3, 4, 0]


BAD = RequestError("invalid_image", "bad")


@settings(max_examples=150, deadline=None)
@given(
    images=st.lists(st.booleans(), min_size=1, max_size=5),
    texts=st.lists(st.booleans(), min_size=1, max_size=5),
    seed=st.integers(0, 999),
)
def test_similarity_nulls_and_sums(images: list[bool], texts: list[bool], seed: int) -> None:
    """Nulls stand where an item failed, the other numbers are those without the failed items."""
    rng = np.random.default_rng(seed)

    def results(good: list[bool]) -> list[Embedded | RequestError]:
        return [Embedded(rng.normal(size=3).astype(np.float32), Usage(2)) if g else BAD for g in good]

    image_results, text_results = results(images), results(texts)
    reply = encode_similarity(spec(5.0), image_results, text_results)
    body = body_of(reply)
    if not any(images) or not any(texts):
        assert reply.status == 400
        kind = images if not all(images) else texts
        assert body == {"error": {"code": "invalid_image", "message": "bad", "index": kind.index(False)}}
        return
    assert reply.status == 200
    alone = body_of(
        encode_similarity(
            spec(5.0),
            [r for r in image_results if isinstance(r, Embedded)],
            [r for r in text_results if isinstance(r, Embedded)],
        )
    )
    for name in ("cosine_similarity", "probabilities"):
        assert [row is not None for row in body[name]] == images
        rows = [row for row in body[name] if row is not None]
        assert all([value is not None for value in row] == texts for row in rows)
        kept = [[value for value in row if value is not None] for row in rows]
        np.testing.assert_allclose(kept, alone[name], rtol=1e-12)
    for row in body["probabilities"]:
        assert row is None or sum(p for p in row if p is not None) == pytest.approx(1)
    assert body["errors"] == [
        {"input": kind, "error": {"code": "invalid_image", "message": "bad", "index": index}}
        for kind, good in (("images", images), ("texts", texts))
        for index, is_good in enumerate(good)
        if not is_good
    ]
    assert body["usage"]["prompt_tokens"] == 2 * sum(texts)


def test_usage_adds_up() -> None:
    assert Usage(1, 0, 2) + Usage(10, 1, 0) == Usage(11, 1, 2)
