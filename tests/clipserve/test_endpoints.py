"""What is said of the endpoints elsewhere is what the table says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clipserve.encoder_spec import read_spec
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import RequestError
from clipserve.settings import Settings
from clipserve.wire.messages import Request
from clipserve.wire.rows import JSON, RequestLimits, Row
from serving.local import CONFIG, read_properties
from tests.clipserve.wire.bodies import PNG_64

ROOT = Path(__file__).parents[2]


def test_an_endpoint_has_its_settings_and_there_are_no_others() -> None:
    names = sorted(["endpoint.py", *(f"{name}.yaml" for name in ENDPOINTS)])
    assert sorted(path.name for path in (ROOT / "handlers").glob("*.*")) == names


def test_the_server_loads_every_endpoint() -> None:
    models = [f"{name}={name}.mar" for name in ENDPOINTS]
    assert read_properties(CONFIG)["load_models"].split(",") == models


@pytest.mark.parametrize("name", ENDPOINTS)
def test_what_a_row_says(name: str) -> None:
    endpoint = ENDPOINTS[name]
    assert endpoint.name == name
    assert "native" in endpoint.dialects
    assert all(getattr(Settings().requests, of.limit) > 0 for of in endpoint.inputs)
    assert {of.limit for of in endpoint.inputs} <= set(RequestLimits.__dataclass_fields__)
    assert not endpoint.gives_embeddings or len(endpoint.inputs) == 1
    assert not endpoint.remembers_texts or "text" in endpoint.modalities


@pytest.mark.parametrize("name", ENDPOINTS)
def test_an_example_is_a_request(name: str, text_path: Path) -> None:
    endpoint, limits, spec = ENDPOINTS[name], Settings().requests, read_spec(text_path)

    def decoded(image: Any, text: Any) -> Request | RequestError:
        body = json.dumps(endpoint.example({"image": image, "text": text})).encode()
        try:
            return endpoint.dialects["native"].decode(Row(body, JSON), limits, spec)
        except RequestError as error:
            return error

    request = decoded([PNG_64, PNG_64], ["a", "b"])
    assert not isinstance(request, RequestError)
    assert [len(items) for items in request.inputs] == [2] * len(endpoint.inputs)
    for odd in (None, 5, {}, [], [None, 5]):
        outcome = decoded(odd, odd)
        assert isinstance(outcome, RequestError) or all(
            isinstance(item, RequestError) for items in outcome.inputs for item in items
        )


def test_the_table_is_for_those_who_have_no_pytorch() -> None:
    code = "import sys, clipserve.endpoints; print({'torch', 'PIL', 'tokenizers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
