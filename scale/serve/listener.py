"""The ingress' own address, without Ray Serve's proxy before it.

On one machine that has nothing to balance: it would read a request, hand it to the ingress by a call of
Ray's, and take the answer back by others.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from ray import serve
from starlette.types import Message, Receive, Scope, Send

from clipserve.tracing import trace_headers

REQUEST_ID = "x-request-id"

# Bytes of a request's line and headers: what nginx takes, four buffers of 8 kB (large_client_header_buffers).
# Without a bound, one that never ends is read until memory does.
HEADER_BYTES = 32 * 1024

# Connections that wait to be accepted.
BACKLOG = 2048

# For Ray Serve to tell a new ingress who it is.
POLL_SECONDS = 0.01

# Of this process; None where it has no address of its own.
_socket: socket.socket | None = None


def listen_at(host: str, port: int) -> None:
    """Takes an address for this process; `answering` answers there.

    Raises:
        OSError: it is taken.
    """
    global _socket
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # At once also where one that was killed has left connections behind: Python sets SO_REUSEADDR.
    _socket = socket.create_server((host, port), family=family, backlog=BACKLOG)


@contextlib.asynccontextmanager
async def answering() -> AsyncIterator[None]:
    """Answers at this process's address, if it has one, as long as the `with` block lasts.

    What is being answered by then still is.
    """
    if _socket is None:
        yield
        return
    # h11 reads no header without an end, which httptools, the faster one, does.
    server = uvicorn.Server(
        uvicorn.Config(
            _answer,
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=HEADER_BYTES,
        )
    )
    task = asyncio.create_task(server.serve(sockets=[_socket]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    """A request, by the application that Ray Serve has for this replica, until its caller leaves.

    The answer has an `x-request-id`, as behind Ray Serve's proxy: the request's own, or one made here.
    """
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    request_id = trace_headers(headers).get(REQUEST_ID) or str(uuid.uuid4())
    body_read = asyncio.Event()
    answered = False

    async def receiving() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            body_read.set()
        return message

    async def sending(message: Message) -> None:
        nonlocal answered
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (REQUEST_ID.encode(), request_id.encode())]
        answered = message["type"] == "http.response.body" and not message.get("more_body")
        await send(message)

    async def leaving() -> None:
        # Behind the body comes nothing but that.
        await body_read.wait()
        await receive()
        if not answered:
            asked.cancel()

    application = await _application()
    asked = asyncio.create_task(application(scope, receiving, sending))
    watch = asyncio.create_task(leaving())
    try:
        await asyncio.wait([asked])
        if not asked.cancelled():
            asked.result()
    finally:
        watch.cancel()
        asked.cancel()


async def _application() -> Any:
    """The ingress as Ray Serve has wrapped it; not there before Ray Serve is done with starting it."""
    while True:
        found: Any = serve.get_replica_context().servable_object
        if found is not None:
            return found
        await asyncio.sleep(POLL_SECONDS)
