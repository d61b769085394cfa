"""A span for each request: what is in it, and that there is none where nobody asked for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

if importlib.util.find_spec("opentelemetry") is None:
    pytest.skip("needs .venv-scale: make test-scale", allow_module_level=True)

from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from starlette.middleware import Middleware

from clipserve.errors import SettingsError
from scale.serve import tracing
from scale.serve.application import AppArguments
from scale.serve.tracing import SpanForEachRequest, check_collector, export_spans

SECRET = "zweihundfuenfzig"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_provider", provider)
    return exporter


@pytest.fixture
def http() -> Iterator[TestClient]:
    app = FastAPI(middleware=[Middleware(SpanForEachRequest)])

    @app.get("/fails")
    async def fails() -> None:
        raise ValueError(SECRET)

    @app.get("/full", status_code=503)
    async def full() -> None: ...

    with TestClient(app, raise_server_exceptions=False) as http:
        yield http


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


@pytest.mark.parametrize(("path", "status"), [("/fails", 500), ("/full", 503)])
def test_a_failure_of_ours_is_an_error(
    http: TestClient, exporter: InMemorySpanExporter, path: str, status: int
) -> None:
    assert http.get(path, params={"key": SECRET}).status_code == status
    # One: FastAPI makes spans of its own, with the query, for a provider that is everybody's.
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.status.status_code) == (f"GET {path}", StatusCode.ERROR)
    assert attributes(span) == {
        "http.request.method": "GET",
        "http.route": path,
        "http.response.status_code": status,
        "error.type": str(status),
    }
    assert SECRET not in span.to_json()


def test_neither_a_path_nor_a_method_of_the_callers_own_is_told(
    http: TestClient, exporter: InMemorySpanExporter
) -> None:
    assert http.request(SECRET, f"/{SECRET}").status_code == 404
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.status.status_code) == ("_OTHER", StatusCode.UNSET)
    assert attributes(span) == {"http.request.method": "_OTHER", "http.response.status_code": 404}
    assert SECRET not in span.to_json().lower()


def test_nothing_is_sent_unless_it_is_asked_for(http: TestClient) -> None:
    assert AppArguments(store=Path(), key_file=Path()).traces is None
    assert http.get("/full").status_code == 503
    assert tracing._provider is None


def test_nobody_else_has_its_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI writes a request's query into spans of the global one."""
    monkeypatch.setattr(tracing, "_provider", None)
    export_spans("http://127.0.0.1:9")
    found = tracing._provider
    assert found is not None
    assert trace.get_tracer_provider() is not found
    found.shutdown()


@pytest.mark.parametrize("url", ["", "127.0.0.1:4318", "grpc://127.0.0.1:4317", "http://", "http://a/?b"])
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(SettingsError, match="speaks OTLP over HTTP, such as http"):
        check_collector(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:4318", "https://collector.example.org/otlp/"])
def test_an_address(url: str) -> None:
    check_collector(url)
