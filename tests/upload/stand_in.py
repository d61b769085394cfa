"""A stand-in of OpenSearch and Elasticsearch on loopback: says yes, and keeps what it is sent."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HIT = {"_id": "1", "_score": 0.75, "_source": {"path": "/p/dogs.jpg"}}

# What the clients go on with, by the first pattern that is part of method and path.
ANSWERS: tuple[tuple[str, dict[str, Any]], ...] = (
    # OpenSearch's.
    (r"POST /_plugins/_ml/models/meta$", {"model_id": "registered", "status": "CREATED"}),
    (r"POST /_plugins/_ml/models/registered/chunk/\d+$", {"status": "Uploaded"}),
    (r"POST /_plugins/_ml/models/registered/_deploy$", {"task_id": "task", "status": "CREATED"}),
    (r"GET /_plugins/_ml/models/registered$", {"model_state": "DEPLOYED"}),
    (r"GET /_plugins/_ml/tasks/task$", {"state": "COMPLETED"}),
    # Elasticsearch's.
    (r"PUT /_ml/trained_models/[a-z0-9_.-]+(/vocabulary|/definition/\d+)?$", {"acknowledged": True}),
    (r"POST /_ml/trained_models/[a-z0-9_.-]+/deployment/_start$", {"assignment": {}}),
    # Of both.
    (r"PUT /(pictures|_cluster/settings)$", {"acknowledged": True}),
    (r"POST /pictures/_bulk$", {"errors": False}),
    (r"POST /pictures/_search$", {"took": 1, "timed_out": False, "hits": {"hits": [HIT]}}),
)


@dataclass(frozen=True)
class Received:
    """A request; `target` is method and path, without what stands behind a question mark."""

    target: str
    content_type: str
    body: bytes


@dataclass
class Engine:
    """What it was sent, in order, at `url`."""

    url: str
    received: list[Received] = field(default_factory=list)

    def bodies(self, pattern: str) -> list[bytes]:
        """Of the requests whose whole target a pattern matches."""
        return [request.body for request in self.received if re.fullmatch(pattern, request.target)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        target = f"{self.command} {self.path.partition('?')[0]}"
        self.engine.received.append(Received(target, self.headers.get("Content-Type", ""), body))
        answer = next((answer for pattern, answer in ANSWERS if re.match(pattern, target)), None)
        data = json.dumps({"error": f"no answer to {target}"} if answer is None else answer).encode()
        self.send_response(404 if answer is None else 200)
        # Elasticsearch's client speaks with nothing else.
        self.send_header("X-Elastic-Product", "Elasticsearch")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: pytest shows what was received where that matters."""


@contextmanager
def running_engine() -> Iterator[Engine]:
    """A stand-in that runs on a free port."""
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        engine = Engine(f"http://127.0.0.1:{server.server_port}")
        handler.engine = engine
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield engine
        finally:
            server.shutdown()
            thread.join()
