from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipserve.errors import RequestError
from clipserve.wire.messages import EmbeddingRequest
from clipserve.wire.native import (
    encode_error,
)
from clipserve.wire.rows import JSON, Part, Row
from clipserve.wire.similarity import SimilarityRequest
from tests.clipserve.wire.bodies import (
    AROUND,
    ENDPOINTS,
    FORM,
    MULTIPART,
    PARSERS,
    form,
    items_of,
    json_row,
    outcome_of,
)


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
