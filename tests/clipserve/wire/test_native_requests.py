from __future__ import annotations

import json
from typing import Any

import pytest

from clipserve.encoder_spec import ScoreKind
from clipserve.errors import RequestError
from clipserve.wire.messages import EmbeddingRequest
from clipserve.wire.native import (
    decode_images,
    decode_texts,
)
from clipserve.wire.rows import JSON, RequestLimits, Row
from clipserve.wire.similarity import SimilarityRequest
from clipserve.wire.similarity import decode as decode_similarity
from tests.clipserve.wire.bodies import (
    LIMITS,
    PARSERS,
    PNG,
    PNG_64,
    assert_refused,
    codes,
    form,
    json_row,
)


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/octet-stream", "text/html"])
def test_text_as_the_body(content_type: str) -> None:
    text = "két kutya\na hóban 雪 🐶 "
    request = decode_texts(Row(text.encode(), content_type), LIMITS)
    assert request == EmbeddingRequest([text], "float")


def test_empty_text_is_a_text() -> None:
    assert decode_texts(json_row({"input": ""}), LIMITS).items == [""]


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


@pytest.mark.parametrize("score", ["softmax", "sigmoid", None])
@pytest.mark.parametrize("texts", ["texts", "labels"])
def test_similarity_scores(score: ScoreKind | None, texts: str) -> None:
    body = {"images": [PNG_64], texts: ["a"], "score": score}
    assert decode_similarity(json_row(body), LIMITS) == SimilarityRequest([PNG], ["a"], score)
    fields = {texts: b'["a"]'} | ({} if score is None else {"score": score.encode()})
    assert decode_similarity(form(PNG, **fields), LIMITS) == SimilarityRequest([PNG], ["a"], score)


@pytest.mark.parametrize("value", ["Softmax", "", "max", 5, True, [], {}, ["softmax"]], ids=str)
def test_other_scores(value: Any) -> None:
    row = json_row({"images": [PNG_64], "texts": ["a"], "score": value})
    assert_refused(decode_similarity, row, "invalid_request", 400, "'score'", "'softmax' and 'sigmoid'")


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
    assert_refused(parse, form(PNG, labels=b'"a"', score=b"max"), "invalid_request", 400, "'score' is 'max'")
    assert_refused(parse, form(PNG, labels=b"[]"), "empty_request", 400, "'labels'")
    assert_refused(parse, form(PNG, labels=b"[" * 100_000), "invalid_json", 400, "deep")


@pytest.mark.parametrize("content_type", ["image/png", "text/plain", "", "application/octet-stream"])
def test_similarity_takes_json_or_a_form(content_type: str) -> None:
    assert_refused(decode_similarity, Row(PNG, content_type), "unsupported_media_type", 415, JSON)


def test_text_body_that_is_not_utf_8() -> None:
    assert_refused(decode_texts, Row("é".encode("latin-1"), "text/plain"), "invalid_encoding", 400)


@pytest.mark.parametrize("endpoint", ["text", "image"])
@pytest.mark.parametrize("value", ["int8", "", "FLOAT", 5, True, [], {}, ["float"]], ids=str)
def test_encoding_formats(endpoint: str, value: Any) -> None:
    row = json_row({"input": "QQ==", "encoding_format": value})
    assert_refused(PARSERS[endpoint], row, "invalid_request", 400, "'float' and 'base64'")
