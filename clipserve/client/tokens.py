"""Bearer tokens: read from TorchServe's key file, put on requests, renewed when the server refuses one."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from pathlib import Path

import httpx
import tenacity

from clipserve.errors import ServerError

KEY_FILE = Path("key_file.json")
MANAGEMENT_URL = "http://127.0.0.1:8081"

# Seconds that renewing may take.
RENEW_SECONDS = 10.0

TOKEN_ATTEMPTS = 5

NAME_IT = "name the file in the server's folder: Client(tokens=Path('/the/servers/folder/key_file.json'))"


class MissingKeyFileError(ServerError):
    """There is no token file where one was looked for."""


class RefusedTokenError(ServerError):
    """The server takes none of the tokens that this client has."""


class KeyFile:
    """TorchServe's token file: read when needed, renewed through the management address on expiry.

    The API key, which never expires, is sent to that address only, through no proxy.

    Args:
        path: `key_file.json`, which TorchServe writes into the folder it was started from.
        management_url: where tokens are renewed.
    """

    def __init__(self, path: Path = KEY_FILE, management_url: str = MANAGEMENT_URL):
        self._path = path
        self._management_url = management_url

    def token(self, kind: str) -> str:
        """The current token of a kind: `inference`, `management` or `API`.

        Raises:
            ServerError: no such file, or not TorchServe's.
        """
        try:
            key = json.loads(self._read())[kind]["key"]
        except FileNotFoundError:
            raise MissingKeyFileError(
                f"{self._path.absolute()}: no token file; start the server with 'make serve', or {NAME_IT}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ServerError(f"{self._path}: not TorchServe's token file ({error!r})") from error
        return str(key)

    @tenacity.retry(
        retry=tenacity.retry_if_result(lambda text: not text.endswith("}")),
        stop=tenacity.stop_after_delay(1.0),
        wait=tenacity.wait_fixed(0.02),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    def _read(self) -> str:
        # TorchServe renews tokens by emptying the file and writing it anew: half a file will soon be whole.
        return self._path.read_text(encoding="utf-8").strip()

    def renew(self, kind: str, stale: str) -> str:
        """A token other than `stale`: another process may have renewed it, else the server is asked.

        Raises:
            ServerError: the server cannot be reached or refuses.
        """
        current = self.token(kind)
        if current != stale:
            return current
        try:
            with direct_http(RENEW_SECONDS) as http:
                response = http.get(
                    f"{self._management_url}/token",
                    params={"type": kind},
                    headers={"Authorization": f"Bearer {self.token('API')}"},
                )
        except httpx.HTTPError as error:
            raise ServerError(f"{self._management_url}: tokens cannot be renewed: {error}") from error
        if response.status_code != httpx.codes.OK:
            raise ServerError(
                f"{self._management_url}: renewing the {kind} token was refused with status "
                f"{response.status_code}; is {self._path} of this server?"
            )
        return self.token(kind)


class FixedToken(httpx.Auth):
    """Puts one token on every request."""

    def __init__(self, token: str):
        # As it is read from a file, with a line end, it could stand in no header.
        self._authorization = f"Bearer {token.strip()}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        """See `httpx.Auth`."""
        request.headers["Authorization"] = self._authorization
        yield request


class RenewedToken(httpx.Auth):
    """Puts a key file's token of one kind on every request, and asks again with a new one when it is refused.

    Raises:
        ServerError: from a request; there is no key file, or the token cannot be renewed.
    """

    requires_response_body = True

    def __init__(self, keys: KeyFile, kind: str):
        self._keys = keys
        self._kind = kind
        self._lock = threading.Lock()
        self._current: str | None = None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        """See `httpx.Auth`."""
        with self._lock:
            token = self._current = self._current or self._keys.token(self._kind)
        # Another client that renews in the same moment makes the token stale that this one just got.
        for _ in range(TOKEN_ATTEMPTS):
            request.headers["Authorization"] = f"Bearer {token}"
            response = yield request
            if not refuses_token(response):
                return
            token = self._renewed(token)

    def _renewed(self, stale: str) -> str:
        # One thread renews, and the others take what it got.
        with self._lock:
            if self._current == stale:
                self._current = self._keys.renew(self._kind, stale)
            return str(self._current)


def token_auth(tokens: KeyFile | str | None, kind: str) -> httpx.Auth | None:
    """What puts tokens of a kind on requests; None where the server asks for none."""
    if isinstance(tokens, KeyFile):
        return RenewedToken(tokens, kind)
    return None if tokens is None else FixedToken(tokens)


def refuses_token(response: httpx.Response) -> bool:
    """Whether this is how TorchServe refuses a token that is missing, wrong or expired: 400, not 401."""
    return response.status_code == 400 and b"InvalidKeyException" in response.content


def direct_http(timeout: float, proxy: str | None = None) -> httpx.Client:
    """Connections through no proxy but the one that is named; `timeout` in seconds."""
    # With a transport of its own a client asks the environment for no proxy, yet still for certificates
    # (SSL_CERT_FILE).
    return httpx.Client(transport=httpx.HTTPTransport(proxy=proxy), timeout=timeout, trust_env=False)
