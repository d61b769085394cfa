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
from clipserve.wire.schemas import DESCRIPTION
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
            return endpoint.decode(Row(body, JSON), limits, spec)
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


@pytest.mark.parametrize("content_type", ["", JSON, "text/plain", "image/png"])
@pytest.mark.parametrize("name", ENDPOINTS)
def test_who_sends_nothing_is_told_what_to_send(name: str, content_type: str, text_path: Path) -> None:
    """`GET /predictions/clip_text` was answered with the embedding of no text at all."""
    endpoint, spec = ENDPOINTS[name], read_spec(text_path)
    with pytest.raises(RequestError) as refused:
        endpoint.read(Row(b"", content_type), RequestLimits(), spec)
    assert (refused.value.code, refused.value.status) == ("empty_request", 400)
    said = refused.value.message
    example = json.dumps(endpoint.description(RequestLimits(), spec)["example"], ensure_ascii=False)
    for words in (*endpoint.bodies, example, spec.model_id, f"gives {spec.embedding_dim} numbers"):
        assert words in said
    assert len(said) < 400


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "multipart/form-data"])
@pytest.mark.parametrize("name", ENDPOINTS)
def test_a_form_without_parts_is_told_of_its_type(name: str, content_type: str, text_path: Path) -> None:
    with pytest.raises(RequestError) as refused:
        ENDPOINTS[name].read(Row(b"", content_type), RequestLimits(), read_spec(text_path))
    assert (refused.value.code, refused.value.status) == ("unsupported_media_type", 415)


@pytest.mark.parametrize("name", ENDPOINTS)
def test_a_description_is_filled_in_to_a_request(name: str, text_path: Path) -> None:
    endpoint, spec = ENDPOINTS[name], read_spec(text_path)
    told = endpoint.description(Settings().requests, spec)
    assert set(told) == set(DESCRIPTION["properties"])
    assert told["embedding_dim"] == spec.embedding_dim
    assert told["limits"] == {of.limit: getattr(Settings().requests, of.limit) for of in endpoint.inputs}
    body = json.dumps(told["example"]).replace("<base64 or data: URI>", PNG_64).encode()
    request = endpoint.read(Row(body, told["content_types"][0]), Settings().requests, spec)
    assert not [item for items in request.inputs for item in items if isinstance(item, RequestError)]


def test_the_table_is_for_those_who_have_no_pytorch() -> None:
    code = "import sys, clipserve.endpoints; print({'torch', 'PIL', 'tokenizers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
