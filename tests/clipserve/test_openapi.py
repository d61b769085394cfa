"""docs/openapi.json says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from clipserve import openapi
from clipserve.encoder import ExportedTextEncoder
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import RequestError
from clipserve.wire.rows import JSON, RequestLimits, Row

PAGE = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_the_file_is_what_the_tables_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == openapi.text(), "run 'make openapi'"


@pytest.mark.parametrize("name", ENDPOINTS)
def test_fields_are_those_that_are_read(name: str, text_encoder: ExportedTextEncoder) -> None:
    """A field that is not is refused with the names of those that are."""
    with pytest.raises(RequestError, match="unknown field 'no such field'") as refused:
        ENDPOINTS[name].decode(Row(b'{"no such field": 1}', JSON), RequestLimits(), text_encoder.spec)
    allowed = re.search("allowed are (.*)", refused.value.message)
    assert allowed is not None
    assert set(allowed[1].split(", ")) == set(ENDPOINTS[name].bodies[JSON]["properties"])


@pytest.mark.parametrize("name", ENDPOINTS)
def test_examples_are_requests(name: str, text_encoder: ExportedTextEncoder) -> None:
    example = openapi.document()["paths"][f"/predictions/{ENDPOINTS[name].path}"]["post"]["requestBody"][
        "content"
    ][JSON]["example"]
    request = ENDPOINTS[name].decode(
        Row(json.dumps(example).encode(), JSON), RequestLimits(), text_encoder.spec
    )
    assert not [item for items in request.inputs for item in items if isinstance(item, RequestError)]
