"""What turns strangers away: other web pages, and other people of this machine or of a forwarded port."""

from __future__ import annotations

import secrets
from http import HTTPStatus
from urllib.parse import urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

PARAMETER = "token"

REFUSED = "this page opens at the whole address that 'make ui' printed, with its token"


class SameOrigin:
    """ASGI middleware that turns away what other web pages ask for, and sends `HEADERS` with every response.

    A foreign page may link here; it may not post, and not read or embed anything. Refused before the body is
    read.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on if it is this page's own."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        app = self._app
        if scope["type"] == "http" and _is_foreign(scope["method"], Headers(scope=scope)):
            app = PlainTextResponse("asked for by another web page", HTTPStatus.FORBIDDEN)
        await app(scope, receive, send_with_headers)


def _is_foreign(method: str, headers: Headers) -> bool:
    if method not in ("GET", "HEAD"):
        # Every browser says where a POST comes from. The host is one of ours: it was looked at before.
        return headers.get("origin") != f"http://{headers.get('host')}"
    opened = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not opened


class TokenHolders:
    """ASGI middleware that lets in who has the page's token: whoever opened the address that was printed.

    The address is exchanged for a cookie, so that the token leaves the address bar at once. Every user of a
    machine reaches its loopback, and a forwarded port may be everybody's.

    Args:
        app: what it guards.
        token: the page's.
        port: of the page; browsers send a host's cookies to all of its ports.
    """

    def __init__(self, app: ASGIApp, token: str, port: int):
        self._app = app
        self._token = token.encode()
        self._cookie = f"clipserve_{PARAMETER}_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on if it has the token."""
        app = self._app
        if scope["type"] == "http":
            request = Request(scope)
            if request.method == "GET" and self._is_token(request.query_params.get(PARAMETER, "")):
                app = self._exchange(request)
            elif not self._is_token(request.cookies.get(self._cookie, "")):
                app = _refusal(request)
        await app(scope, receive, send)

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(), self._token)

    def _exchange(self, request: Request) -> Response:
        rest = [item for item in request.query_params.multi_items() if item[0] != PARAMETER]
        # The path alone, never another host.
        address = "/" + request.url.path.lstrip("/") + (f"?{urlencode(rest)}" if rest else "")
        response = RedirectResponse(address, HTTPStatus.SEE_OTHER, {"cache-control": "no-store"})
        # Lax: a link in a web mail or a terminal in the browser may lead here; nothing is changed by a GET.
        response.set_cookie(self._cookie, self._token.decode(), httponly=True, samesite="lax")
        return response


def _refusal(request: Request) -> Response:
    headers = {"cache-control": "no-store"}
    if request.headers.get("sec-fetch-mode") in (None, "navigate"):
        page = f'<!doctype html><html lang="en"><title>clipserve search</title><p>{REFUSED}'
        return HTMLResponse(page, HTTPStatus.FORBIDDEN, headers)
    return JSONResponse({"message": REFUSED, "of_picture": False}, HTTPStatus.FORBIDDEN, headers)
