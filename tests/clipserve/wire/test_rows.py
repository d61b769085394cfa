from __future__ import annotations

import json

import pytest

from clipserve.wire.messages import EmbeddingRequest
from clipserve.wire.native import (
    decode_images,
    decode_texts,
)
from clipserve.wire.rows import JSON, MAX_PARTS, Part, Row
from clipserve.wire.similarity import SimilarityRequest
from clipserve.wire.similarity import decode as decode_similarity
from tests.clipserve.wire.bodies import (
    ENDPOINTS,
    FORM,
    LIMITS,
    MULTIPART,
    PARSERS,
    PNG,
    PNG_64,
    REQUEST,
    assert_refused,
    form,
    refused,
)


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


def test_messages_never_repeat_a_long_content_type() -> None:
    assert len(refused(decode_similarity, Row(b"", "a/" + "b" * 5000)).message) < 250
