"""A readiness probe over HTTP for load balancers and Kubernetes: no token, nothing but yes or no.

TorchServe's own `/ping` needs a token and says Healthy while a worker crash-loops. This one asks what
`make ready` asks, at most every few seconds however often it is asked itself, and gives nothing else away:
reasons hold paths and names, so they go to its own standard error, where whoever runs it can read them.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from clipserve.client import Management
from clipserve.errors import ClipServeError
from serving.server import Server

# One check costs each worker a forward pass.
FRESH_SECONDS = 5.0

# A worker that takes longer over its golden input is as good as stuck.
PATIENCE_SECONDS = 10.0


class Readiness:
    """The last answer of a server's check, asked for anew when it is stale."""

    def __init__(self, server: Server):
        self._server = server
        self._lock = threading.Lock()
        self._checked = float("-inf")
        self._reason: str | None = None

    def reason(self) -> str | None:
        """Why the server is not ready; None: it is."""
        with self._lock:  # many probes at once share one check
            if time.monotonic() - self._checked > FRESH_SECONDS:
                reason = self._check()
                if reason is not None and reason != self._reason:
                    print(f"not ready: {reason}", file=sys.stderr, flush=True)
                self._reason = reason
                self._checked = time.monotonic()
            return self._reason

    def alive(self) -> bool:
        """Whether the server's process exists; what to restart it by."""
        return self._server.running_pid() is not None

    def _check(self) -> str | None:
        if not self.alive():
            return "TorchServe is not running"
        try:
            with self._server.client(timeout=PATIENCE_SECONDS) as client:
                Management(client).check_ready(self._server.endpoints)
        except ClipServeError as error:
            return str(error)
        return None


def probe_server(server: Server, host: str, port: int) -> ThreadingHTTPServer:
    """An HTTP server of `GET /ready` and `GET /live`: 200 or 503; not started yet."""
    readiness = Readiness(server)

    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0  # seconds that a caller may take to send its request

        def do_GET(self) -> None:
            if self.path == "/live":
                self._answer(readiness.alive())
            elif self.path == "/ready":
                self._answer(readiness.reason() is None)
            else:
                self.send_error(HTTPStatus.NOT_FOUND, "ask /ready or /live")

        def _answer(self, good: bool) -> None:
            body = json.dumps({"ok": good}).encode()
            self.send_response(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: object) -> None:
            """Nothing: it is asked every few seconds."""

    return ThreadingHTTPServer((host, port), Handler)
