from __future__ import annotations

import base64
import json
import sys
import tracemalloc
from typing import Any

import pytest

from clipserve.errors import RequestError
from clipserve.wire.json_input import MAX_JSON_DEPTH, MAX_JSON_VALUES
from clipserve.wire.native import (
    decode_images,
    decode_texts,
)
from clipserve.wire.rows import RequestLimits, Row
from clipserve.wire.similarity import decode as decode_similarity
from tests.clipserve.wire.bodies import (
    AROUND,
    ENDPOINTS,
    LIMITS,
    PARSERS,
    PNG,
    PNG_64,
    Parse,
    assert_refused,
    codes,
    form,
    items_of,
    json_row,
    outcome_of,
    refused,
)


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
