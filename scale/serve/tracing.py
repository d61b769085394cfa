"""A span for each HTTP request, sent to an OpenTelemetry collector where the application is told of one.

A span has a route, a method, a status and its times, and for its parent what the request's `traceparent`
names. Nothing of a body, a query, a path's free parts or another header is in it. So its provider is not
OpenTelemetry's global one: FastAPI and Ray Serve write spans of their own into that, with queries, paths as
they were asked for and the messages of exceptions.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, MutableMapping
from http import HTTPMethod
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipserve.endpoints import ENDPOINTS
from clipserve.errors import SettingsError

SERVICE = "clipserve"
# Of the collector, by the OpenTelemetry protocol over HTTP.
COLLECTOR_PATH = "/v1/traces"

# Of this process; None where nobody is told.
_provider: TracerProvider | None = None


def check_collector(url: str) -> None:
    """Checks the address of a collector.

    Raises:
        SettingsError: it is none.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise SettingsError(
            f"traces is {url!r}, should be the address of a collector that speaks OTLP over HTTP, such as "
            "http://127.0.0.1:4318"
        )


def export_spans(collector: str) -> None:
    """Sends a span for each request of this process to a collector from now on, a few seconds' at a time.

    Args:
        collector: its address, without `/v1/traces`. Headers, certificates and timeouts are the exporter's
            own variables of the environment, `OTEL_EXPORTER_OTLP_…`.
    """
    global _provider
    # Not above: whoever sends no spans need not import protobuf and requests for it.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    _provider = TracerProvider(resource=Resource.create({SERVICE_NAME: SERVICE}))
    exporter = OTLPSpanExporter(endpoint=collector.rstrip("/") + COLLECTOR_PATH)
    _provider.add_span_processor(BatchSpanProcessor(exporter))


@contextlib.asynccontextmanager
async def flushed_at_the_end() -> AsyncIterator[None]:
    """Of what is traced within the `with` block, the last spans are not lost."""
    yield
    if _provider is not None:
        await asyncio.to_thread(_provider.shutdown)


class SpanForEachRequest:
    """ASGI middleware, in which each HTTP request is a span."""

    def __init__(self, app: ASGIApp):
        self._app = app
        self._parent = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request as the application does."""
        if scope["type"] != "http" or _provider is None:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        # A method is any word that a caller likes.
        method = scope["method"] if scope["method"] in HTTPMethod.__members__ else "_OTHER"
        span = _provider.get_tracer(SERVICE).start_span(
            method, self._parent.extract(headers), SpanKind.SERVER, {"http.request.method": method}
        )

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                _answered(span, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            # Starlette answers it with 500, outside of this.
            _answered(span, 500)
            raise
        finally:
            route = _route(scope)
            if route is not None:
                span.set_attribute("http.route", route)
                span.update_name(f"{method} {route}")
            span.end()


def _answered(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(StatusCode.ERROR)
        span.set_attribute("error.type", str(status))


def _route(scope: MutableMapping[str, Any]) -> str | None:
    """The path as the routes have it, with the endpoint's name where there is such a one."""
    route = scope.get("route")
    if route is None:
        return None
    path: str = route.path
    endpoint = scope["path_params"].get("endpoint")
    return path.replace("{endpoint}", endpoint) if endpoint in ENDPOINTS else path
