"""How requests reach a server: addresses, tokens, and retries only where they are safe."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import tenacity

from clipserve.client.tokens import (
    NAME_IT,
    KeyFile,
    RefusedTokenError,
    direct_http,
    refuses_token,
    token_auth,
)
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import ServerError

INFERENCE_URL = "http://127.0.0.1:8080"

# 503 is a full queue or no worker. A worker that died is a 500, and a 507 where SIGKILL ended it: TorchServe
# takes that for the kernel's out-of-memory killer. An embedding has no side effect, so that asking again is
# safe. 4xx are the caller's.
RETRIED_STATUS = frozenset({500, 503, 507})
RETRIES_SECONDS = 30.0
# However long they and the waiting between them took.
RETRIES_AT_LEAST = 3
# What took longer is not asked again: the server gave up at its own deadline (`max_seconds` 25,
# `responseTimeout` 60), and a request that is too much for one worker would end the next one, too.
RETRY_WITHIN_SECONDS = 20.0

# Where a response says how long it took: httpx' own `elapsed` is not there with every transport.
SECONDS = "clipserve_seconds"


class Connection:
    """Requests to one server; safe to use from several threads. Arguments: see `Client`.

    Attributes:
        tokens: as `Client` was given them, a path as the key file that it names.
    """

    def __init__(
        self,
        url: str,
        management_url: str,
        tokens: KeyFile | Path | str | None,
        http: httpx.Client | None,
        timeout: float,
        proxy: str | None,
        retries: bool,
    ):
        self._url = _address(url)
        self._management_url = _address(management_url)
        self.tokens = KeyFile(tokens, self._management_url) if isinstance(tokens, Path) else tokens
        self._auth = {kind: token_auth(self.tokens, kind) for kind in ("inference", "management")}
        self._is_own = http is None
        self._http = direct_http(timeout, proxy) if http is None else http
        self._retries = retries

    def close(self) -> None:
        """Closes the connections, unless they are the caller's."""
        if self._is_own:
            self._http.close()

    def predict(self, endpoint: str, content: bytes, content_type: str) -> httpx.Response:
        """An endpoint's answer to a request body, whatever its status.

        Raises:
            ServerError: the server cannot be reached.
        """
        # Its whole path: the documented proxy lets no other through.
        path = ENDPOINTS[endpoint].path if endpoint in ENDPOINTS else endpoint
        url = f"{self._url}/predictions/{path}"
        headers = {"Content-Type": content_type}
        return self._send(
            "inference", self._http.build_request("POST", url, content=content, headers=headers)
        )

    def describe(self, endpoint: str, params: Mapping[str, str] | None = None) -> Any:
        """What the management address says of an endpoint, parsed.

        Raises:
            ServerError: the server cannot be reached, refuses, or has no such endpoint.
        """
        url = f"{self._management_url}/models/{endpoint}"
        response = self._send("management", self._http.build_request("GET", url, params=params))
        self.check_token(response)
        if response.status_code != httpx.codes.OK:
            raise ServerError(f"{response.url}: status {response.status_code}: {response.text.strip()[:200]}")
        try:
            return response.json()
        except ValueError as error:
            raise ServerError(f"{response.url}: status 200 with a body that is not JSON") from error

    def listens(self) -> bool:
        """Whether anything answers at the management address."""
        try:
            self._http.get(self._management_url)
        except httpx.HTTPError:
            return False
        return True

    def check_token(self, response: httpx.Response) -> None:
        """Checks that an answer is not the refusal of a token.

        Raises:
            RefusedTokenError: it is.
        """
        if refuses_token(response):
            which = (
                "asks for a token"
                if self.tokens is None
                else "refuses the token: it is another's, or expired"
            )
            raise RefusedTokenError(f"{response.url}: the server {which}; {NAME_IT}")

    def _send(self, kind: str, request: httpx.Request) -> httpx.Response:
        started = 0.0
        # None leaves it to the caller's own client, which may sign requests in its way.
        auth = self._auth[kind] or httpx.USE_CLIENT_DEFAULT

        @tenacity.retry(
            retry=tenacity.retry_all(
                tenacity.retry_any(
                    tenacity.retry_if_result(lambda response: response.status_code in RETRIED_STATUS),
                    tenacity.retry_if_exception_type(
                        (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError)
                    ),
                ),
                lambda _: time.monotonic() - started <= RETRY_WITHIN_SECONDS,
            ),
            stop=tenacity.stop_all(
                tenacity.stop_after_delay(RETRIES_SECONDS), tenacity.stop_after_attempt(RETRIES_AT_LEAST)
            )
            if kind == "inference" and self._retries
            else tenacity.stop_after_attempt(1),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=2.0),
            # Out of patience: the last answer or exception speaks for itself.
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        def attempt() -> httpx.Response:
            nonlocal started
            started = time.monotonic()
            response = self._http.send(request, auth=auth)
            response.extensions[SECONDS] = time.monotonic() - started
            return response

        try:
            return attempt()
        except httpx.TimeoutException as error:
            raise ServerError(f"{request.url}: no answer in time ({type(error).__name__})") from error
        except httpx.HTTPError as error:
            raise ServerError(
                f"{request.url}: cannot be reached ({error}); is it running? 'make serve'"
            ) from error


def failed_late(response: httpx.Response) -> float | None:
    """After how many seconds a server failed, where it took too long to be asked again; else None."""
    took: float = response.extensions[SECONDS]
    return took if response.status_code in RETRIED_STATUS and took > RETRY_WITHIN_SECONDS else None


def _address(url: str) -> str:
    """An address without a slash at its end.

    Raises:
        ServerError: it is none. A port beyond 65535 would be taken for another one.
    """
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL:
        found = httpx.URL()
    if found.scheme not in ("http", "https") or not found.host or not 0 < (found.port or 80) < 65536:
        raise ServerError(f"{url!r} is no address of a server; one is {INFERENCE_URL}")
    return url.rstrip("/")
