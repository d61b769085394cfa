"""The page's application: a few routes, what turns strangers away, and its server.

HTML is rendered here; `static/` holds the style and the scripts. Nothing is loaded from another machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import secrets
import socket
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import jinja2
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from clipserve.client import Client
from clipserve.encoder_spec import ScoreKind
from clipserve.errors import ClipServeError, RequestError, ServerError
from clipserve.images import ImageLimits
from pictures.facts import UNKNOWN
from pictures.paths import printable
from search.duplicates import THRESHOLD
from search.errors import SearchError
from search.examples import LABELS, QUERIES
from search.page.copies import KINDS, MAX_GROUPS, THRESHOLDS, Copies, part, readable_size
from search.page.originals import NotServedError, converted, find_original, read_original
from search.page.searcher import CLOSENESS, LIMIT, Query, Searcher
from search.page.strangers import PARAMETER, SameOrigin, TokenHolders
from search.queries import normalized
from serving.local import check_port_free

HOST = "127.0.0.1"
FOLDER = Path(__file__).parent

LIMITS = ImageLimits()

# Texts of a comparison are in its address, six characters for a letter of most scripts.
MAX_ADDRESS_BYTES = 256 * 1024

# Requests under way when the page is ended have so long.
SHUTDOWN_SECONDS = 3


class Page:
    """What the routes do.

    Args:
        connect: makes a client of the server.
        folder: of the table; it may be made while the page is open.
    """

    def __init__(self, connect: Callable[[], Client], folder: Path):
        # Two, since the first accepts answers in the table's space only.
        self._searcher = Searcher(connect(), folder)
        self._comparing = connect()
        self._copies = Copies()
        self._reading = asyncio.Lock()
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self._templates.filters["base64"] = lambda data: b64encode(data).decode("ascii")
        self._templates.filters["name"] = lambda path: printable(path.rpartition("/")[2])

    def search(self, request: Request) -> Response:
        """The page with the answer to what its address asks."""
        status, answer = self._answer(request)
        return self._html(
            "search.html",
            status,
            queries=QUERIES,
            max_bytes=LIMITS.max_bytes,
            closeness=CLOSENESS,
            cameras=self._searcher.cameras(),
            **answer,
        )

    def results(self, request: Request) -> Response:
        """The answer alone, or its tiles from `offset` on."""
        status, answer = self._answer(request)
        return self._html("results.html", status, closeness=CLOSENESS, **answer)

    def _answer(self, request: Request) -> tuple[int, dict[str, Any]]:
        try:
            query = Query.read(request.query_params)
            answer = self._searcher.answer(query, _offset(request, LIMIT))
        except (ClipServeError, OSError) as error:
            return _status(error), {"problem": printable(str(error))}
        return HTTPStatus.OK, {"problem": None, "query": query, "limit": LIMIT, **vars(answer)}

    async def add_picture(self, request: Request) -> Response:
        """Takes a dropped picture: the body is its file, byte for byte."""
        sha256 = await run_in_threadpool(self._searcher.add_picture, await _body(request))
        return JSONResponse({"picture": sha256})

    def thumbnail(self, request: Request) -> Response:
        """The small picture of a query's picture."""
        data = self._searcher.thumbnail(request.path_params["sha256"])
        return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    def details(self, request: Request) -> Response:
        """What is known of a row's file."""
        table = self._searcher.table
        found, sha256 = find_original(table, request.query_params.get("path", ""))
        facts = table.facts([found.path]).get(found.path, UNKNOWN)
        folder, _, name = found.path.rpartition("/")
        changed = datetime.datetime.fromtimestamp(found.mtime_ns / 1e9, datetime.UTC)
        return JSONResponse(
            {
                "path": found.path,
                "folder": f"{folder}/",
                "name": printable(name),
                "size": readable_size(found.size),
                "width": facts.width,
                "height": facts.height,
                "changed": changed.isoformat(timespec="seconds"),
                "picture": sha256,
                "taken": facts.taken and facts.taken.isoformat(),
                "camera": facts.camera,
                "place": facts.place,
                "position": None
                if facts.latitude is None
                else f"{facts.latitude:.5f}, {facts.longitude:.5f}",
            }
        )

    async def picture(self, request: Request) -> Response:
        """The picture of a row: as it is on disk if browsers show its format, else converted."""
        path = request.query_params.get("path", "")
        # One at a time, since converting takes up to `max_memory`; and none for whoever has leafed on.
        async with self._reading:
            if await request.is_disconnected():
                raise ClientDisconnect
            original = await run_in_threadpool(lambda: read_original(self._searcher.table, path))
            headers = {"cache-control": "private, no-cache", "etag": f'"{original.sha256}"'}
            if request.headers.get("if-none-match") == headers["etag"]:
                return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
            if original.media_type is None:
                original = await run_in_threadpool(converted, original, LIMITS)
        return Response(original.data, media_type=original.media_type, headers=headers)

    def copies(self, request: Request) -> Response:
        """The page of equal and nearly equal pictures; the groups follow, since they take their time."""
        return self._html(
            "copies.html", HTTPStatus.OK, thresholds=THRESHOLDS, default=THRESHOLD, max_bytes=LIMITS.max_bytes
        )

    async def groups(self, request: Request) -> Response:
        """The groups of equal and nearly equal pictures, from `offset` on."""
        parameters = request.query_params
        try:
            kind, least = parameters.get("kind", ""), parameters.get("least", str(THRESHOLD))
            threshold = {str(one): one for one in THRESHOLDS}.get(least)
            if threshold is None or kind not in KINDS:
                raise SearchError(
                    f"kind {kind!r}, least {least!r}: allowed are {', '.join(map(repr, KINDS))} and "
                    f"{', '.join(map(str, THRESHOLDS))}"
                )
            offset = _offset(request, MAX_GROUPS)
            table = await run_in_threadpool(lambda: self._searcher.table)
            found = await self._copies.compare(table, threshold, again=not offset)
            shown = await run_in_threadpool(part, table, found, kind, offset)
        except (ClipServeError, OSError) as error:
            return self._html("groups.html", _status(error), problem=printable(str(error)))
        return self._html("groups.html", HTTPStatus.OK, problem=None, **vars(shown))

    def comparison(self, request: Request) -> Response:
        """The page that compares pictures with texts."""
        return self._html("compare.html", HTTPStatus.OK, examples=LABELS, max_bytes=LIMITS.max_bytes)

    async def compare(self, request: Request) -> Response:
        """One picture, the body, with the texts of the address: cosine similarities and probabilities."""
        texts = request.query_params.getlist("text")
        if not texts:
            raise SearchError("at least one text is needed")
        answer = await run_in_threadpool(
            self._comparing.similarity,
            [await _body(request)],
            labels=[normalized(text) for text in texts],
            template=request.query_params.get("template", "").strip() or "{}",
            # Of other names the server says that it has none.
            score=cast("ScoreKind | None", request.query_params.get("score") or None),
        )
        return JSONResponse(
            {
                "cosine_similarity": answer.cosine_similarity[0].tolist(),
                "probabilities": answer.probabilities[0].tolist(),
                "score": answer.score,
            }
        )

    def _html(self, template: str, status: int, **context: Any) -> HTMLResponse:
        # Never from a cache: the table and the server change.
        headers = {"cache-control": "no-store"}
        return HTMLResponse(self._templates.get_template(template).render(context), status, headers)


def _offset(request: Request, most: int) -> int:
    text = request.query_params.get("offset", "0")
    if not text.isdecimal() or int(text) > most:
        raise SearchError(f"offset: {text!r} is no number from 0 to {most}")
    return int(text)


async def _body(request: Request) -> bytes:
    """The body, refused as soon as it is known to be larger than a picture may be.

    Raises:
        RequestError: `image_too_large` (413).
    """
    too_large = RequestError(
        "image_too_large", f"the picture is too large, allowed are {LIMITS.max_bytes} bytes", 413, 0
    )
    told = request.headers.get("content-length", "0")
    if not told.isdecimal() or int(told) > LIMITS.max_bytes:
        raise too_large
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > LIMITS.max_bytes:
            raise too_large
    return bytes(data)


def _status(error: Exception) -> int:
    match error:
        case RequestError():
            return error.status
        case NotServedError():
            return HTTPStatus.NOT_FOUND
        case ServerError():
            return HTTPStatus.BAD_GATEWAY
        case ClipServeError():
            return HTTPStatus.BAD_REQUEST
        case _:
            return HTTPStatus.INTERNAL_SERVER_ERROR


def _problem(request: Request, error: Exception) -> Response:
    """An error as the scripts take it: a sentence, and whether it is about the picture that was sent."""
    message = error.message if isinstance(error, RequestError) else str(error)
    of_picture = isinstance(error, RequestError) and error.index is not None
    return JSONResponse({"message": printable(message), "of_picture": of_picture}, _status(error))


def _left(request: Request, error: Exception) -> Response:
    """Whoever asked has gone: nobody reads this."""
    return Response(status_code=HTTPStatus.BAD_REQUEST)


def application(page: Page, token: str, port: int) -> Starlette:
    """The page's routes, behind what turns strangers away: see `search.page.strangers`."""
    return Starlette(
        routes=[
            Route("/", page.search),
            Route("/results", page.results),
            Route("/pictures", page.add_picture, methods=["POST"]),
            Route("/thumbnail/{sha256}", page.thumbnail),
            Route("/details", page.details),
            Route("/picture", page.picture),
            Route("/copies", page.copies),
            Route("/copies/groups", page.groups),
            Route("/compare", page.comparison),
            Route("/comparison", page.compare, methods=["POST"]),
            Mount("/static", StaticFiles(directory=FOLDER / "static")),
        ],
        middleware=[
            # A name elsewhere that is made to point here is turned away.
            Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False),
            Middleware(SameOrigin),
            Middleware(TokenHolders, token=token, port=port),
        ],
        exception_handlers={ClientDisconnect: _left, ClipServeError: _problem, OSError: _problem},
    )


def serve_page(connect: Callable[[], Client], folder: Path, port: int) -> None:
    """Serves the page on 127.0.0.1 until interrupted.

    Raises:
        ServerError: the port is taken, or not to be had.
    """
    check_port_free(HOST, port, f"name another: make ui PORT={port + 1}")
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen()
        # Of this run alone, and written nowhere but on the terminal.
        token, port = secrets.token_urlsafe(), listening.getsockname()[1]
        server = uvicorn.Server(
            uvicorn.Config(
                application(Page(connect, folder), token, port),
                # What is searched for is nobody else's business: no log of requests.
                access_log=False,
                log_level="error",
                lifespan="off",
                ws="none",
                http="h11",
                server_header=False,
                h11_max_incomplete_event_size=MAX_ADDRESS_BYTES,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )
        # In a thread: in the main one uvicorn takes the signals, ignored ones too.
        with ThreadPoolExecutor(1) as pool:
            serving = pool.submit(server.run, sockets=[listening])
            print(f"the page is at http://{HOST}:{port}/?{PARAMETER}={token}  (Ctrl-C ends it)", flush=True)
            try:
                with contextlib.suppress(KeyboardInterrupt):
                    serving.result()
            finally:
                server.should_exit = True
