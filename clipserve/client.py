"""A client of the HTTP endpoints: NumPy in and out, tokens renewed, retries only where safe.

```python
from clipserve.client import Client

with Client() as client:
    client.wait_ready()
    images = client.embed_images(["photo.jpg"])                       # float32 [1, 512]
    texts = client.embed_texts(["két kutya a hóban", "雪の中の二匹の犬"])  # float32 [2, 512]
    answer = client.similarity(["photo.jpg"], ["two dogs in the snow", "a cat on a table"])
    answer.probabilities                                              # float64 [1, 2]
```

Elsewhere than in the server's folder, `Client(tokens=Path("/the/servers/folder/key_file.json"))`.
"""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import tenacity

from clipserve.encoder_spec import GOLDEN_MIN_COSINE, FloatArray, decode_vector
from clipserve.errors import ClipServeError, RequestError, ServerError, SpaceError

INFERENCE_URL = "http://127.0.0.1:8080"
MANAGEMENT_URL = "http://127.0.0.1:8081"
KEY_FILE = Path("key_file.json")

ENDPOINTS = ("clip_image", "clip_text", "clip_similarity")

# Below the server's defaults of items per request and of bytes per request (32 MiB, base64 included).
ITEMS_PER_REQUEST = 64
BYTES_PER_REQUEST = 16_000_000

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

TOKEN_ATTEMPTS = 5

ImageInput = bytes | str | Path
Matrix = npt.NDArray[np.float64]


class MissingKeyFileError(ServerError):
    """There is no token file where one was looked for."""


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
                f"{self._path.absolute()}: no token file; start the server with 'make serve', or name the "
                "file in the server's folder: Client(tokens=Path('/the/servers/folder/key_file.json'))"
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
            with _http_client(10.0) as http:
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


@dataclass(frozen=True)
class Similarity:
    """Pictures against texts.

    Attributes:
        cosine_similarity: float64 `[images, texts]` in [-1, 1].
        probabilities: softmax over the texts of `logit_scale` times the cosine; rows sum to 1.
        logit_scale: exponentiated.
        space_id: of the embedding space that was compared in.
    """

    cosine_similarity: Matrix
    probabilities: Matrix
    logit_scale: float
    space_id: str


@dataclass(frozen=True)
class TextUsage:
    """What texts cost: tokens, texts truncated at the context length, tokens not in the vocabulary."""

    prompt_tokens: int
    truncated: int
    unknown_tokens: int


class Client:
    """Talks to the three endpoints.

    Args:
        url: inference address.
        management_url: management address, for `wait_ready` and for renewing tokens.
        tokens: a key file or its path, a fixed inference token, or None for a server that asks for none.
        timeout: seconds that one request may take.
        proxy: URL of a proxy to go through. The environment's (`HTTP_PROXY` …) are not asked: they would be
            shown every token and every picture.
        retries: ask again for up to half a minute where the server cannot be reached or fails; not where a
            person waits for the answer, and would rather be told.

    A client is safe to use from several threads.
    """

    def __init__(
        self,
        url: str = INFERENCE_URL,
        management_url: str = MANAGEMENT_URL,
        tokens: KeyFile | Path | str | None = KEY_FILE,
        timeout: float = 100.0,  # more than the archives' responseTimeout
        proxy: str | None = None,
        retries: bool = True,
    ):
        self._url = url.rstrip("/")
        self._management_url = management_url.rstrip("/")
        self._tokens = KeyFile(tokens, self._management_url) if isinstance(tokens, Path) else tokens
        self._http = _http_client(timeout, proxy)
        self._retries = retries
        self._cached: dict[str, str] = {}
        self._space_id: str | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def require_space(self, space_id: str) -> None:
        """From now on, an answer in another embedding space raises `SpaceError`."""
        self._space_id = space_id

    def embed_images(self, images: Sequence[ImageInput] | ImageInput) -> FloatArray:
        """Embeds pictures, encoded bytes or paths of files: float32 `[N, D]`; one alone is a list of one.

        Raises:
            RequestError: a picture is wrong; `index` says which.
            ServerError: the server cannot be reached or fails.
            OSError: a file cannot be read.
        """
        encoded = _encoded(images)
        vectors: list[FloatArray] = []
        for start, batch in _batches(encoded):
            vectors += self._embed("clip_image", [{"image": image} for image in batch], start)[0]
        return np.stack(vectors) if vectors else np.empty((0, 0), np.float32)

    def embed_texts(self, texts: Sequence[str] | str) -> FloatArray:
        """Embeds texts: float32 `[N, D]`; one alone is a list of one.

        Raises:
            RequestError: a text is wrong; `index` says which.
            ServerError: the server cannot be reached or fails.
        """
        return self.embed_texts_with_usage(texts)[0]

    def embed_texts_with_usage(self, texts: Sequence[str] | str) -> tuple[FloatArray, TextUsage]:
        """Embeds texts and says what they cost; otherwise as `embed_texts`."""
        vectors: list[FloatArray] = []
        totals: Counter[str] = Counter({"prompt_tokens": 0, "truncated": 0, "unknown_tokens": 0})
        for start, batch in _batches([texts] if isinstance(texts, str) else texts):
            embedded, usage = self._embed("clip_text", batch, start)
            vectors += embedded
            totals.update({name: usage[name] for name in totals})
        embeddings = np.stack(vectors) if vectors else np.empty((0, 0), np.float32)
        return embeddings, TextUsage(**totals)

    def similarity(
        self,
        images: Sequence[ImageInput] | ImageInput,
        texts: Sequence[str] | str | None = None,
        *,
        labels: Sequence[str] | str | None = None,
        template: str | None = None,
    ) -> Similarity:
        """Compares pictures with texts, or with labels put into a template such as `a photo of {}`.

        Raises:
            RequestError: an item or the request is wrong.
            ServerError: the server cannot be reached or fails.
            OSError: a file cannot be read.
        """
        body: dict[str, Any] = {"images": _encoded(images)}
        given = {"texts": texts, "labels": labels, "template": template}
        body |= {
            name: value if isinstance(value, str) else [*value]
            for name, value in given.items()
            if value is not None
        }
        answer = self._predict("clip_similarity", body)
        # The server had time for some of the texts, and remembers them: asked again, it makes others.
        while (late := _late(answer)) and len(_late(again := self._predict("clip_similarity", body))) < len(
            late
        ):
            answer = again
        if answer["errors"]:
            raise _request_error(answer["errors"][0]["error"], 400)
        return Similarity(
            np.asarray(answer["cosine_similarity"], np.float64),
            np.asarray(answer["probabilities"], np.float64),
            float(answer["logit_scale"]),
            str(answer["space_id"]),
        )

    def specs(self, endpoint: str) -> list[dict[str, Any]]:
        """The encoder specs of an endpoint, as JSON objects, told by one of its workers.

        Raises:
            ServerError: the server cannot be reached, or has no such endpoint.
        """
        answer = self._management(f"/models/{endpoint}", {"customized": "true"})
        metadata = answer[0].get("customizedMetadata")
        encoders: list[dict[str, Any]] = metadata.get("encoders", []) if isinstance(metadata, dict) else []
        if not encoders:
            raise ServerError(f"{endpoint}: its worker does not say what it serves")
        return encoders

    def check_ready(self, endpoints: Sequence[str] = ENDPOINTS) -> None:
        """Checks that every endpoint has all its workers, and answers its golden input as certified.

        Raises:
            ServerError: one is not ready; the message says which and why.
        """
        # All workers before any golden input: asked again and again during a start, the endpoints that are up
        # would take the cores from those that still load.
        for endpoint in endpoints:
            workers = self._management(f"/models/{endpoint}")[0]
            ready = [w for w in workers["workers"] if w["status"] == "READY"]
            if len(ready) < max(1, workers["minWorkers"]):
                states = ", ".join(w["status"] for w in workers["workers"]) or "none"
                raise ServerError(
                    f"{endpoint}: {len(ready)} of {workers['minWorkers']} workers are ready ({states}); "
                    "logs/model_log.log says why"
                )
        for endpoint in endpoints:
            for spec in self.specs(endpoint):
                self._check_golden(endpoint, spec)

    def _check_golden(self, endpoint: str, spec: Mapping[str, Any]) -> None:
        if endpoint == "clip_similarity":
            # Its workers compared both golden embeddings before they called themselves ready; over HTTP it
            # gives no embeddings.
            return
        golden = spec["certificate"]["golden"]
        if spec["modality"] == "image":
            found = self.embed_images([base64.b64decode(golden["input"])])[0]
        else:
            found = self.embed_texts([golden["input"]])[0]
        expected = decode_vector(golden["embedding"])
        cosine = float(found @ expected / (np.linalg.norm(found) * np.linalg.norm(expected)))
        if not cosine >= GOLDEN_MIN_COSINE:
            raise ServerError(
                f"{endpoint}: the golden input's embedding has cosine {cosine:.6f}, "
                f"not >= {GOLDEN_MIN_COSINE}"
            )

    def wait_ready(self, timeout: float = 120.0, endpoints: Sequence[str] = ENDPOINTS) -> None:
        """Waits until `check_ready` holds.

        Args:
            timeout: seconds.

        Raises:
            ServerError: not ready in time, the message is the last reason; or, at once, a server answers but
                its token file is not where it was looked for.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.check_ready(endpoints)
            except ClipServeError as error:
                # A server writes the file before it listens.
                if isinstance(error, MissingKeyFileError) and self._listens():
                    raise
                if time.monotonic() > deadline:
                    raise ServerError(f"not ready after {timeout:g} s: {error}") from error
                time.sleep(0.25)
            else:
                return

    def _listens(self) -> bool:
        try:
            self._http.get(self._management_url)
        except httpx.HTTPError:
            return False
        return True

    def _embed(
        self, endpoint: str, items: Sequence[Any], start: int
    ) -> tuple[list[FloatArray], Counter[str]]:
        """Embeds items in as many requests as it takes: a server may have time for some of them only.

        Returns:
            Embeddings in the order of the items, and the sum of the answers' `usage`.
        """
        vectors: dict[int, FloatArray] = {}
        usage: Counter[str] = Counter()
        left = list(range(len(items)))
        while left:
            body = {"input": [items[index] for index in left], "encoding_format": "base64"}
            positions = [start + index for index in left]
            answer = self._predict(endpoint, body, positions)
            if len(answer["data"]) != len(left):
                raise ServerError(f"asked for {len(left)} embeddings, got {len(answer['data'])}")
            late = []
            for index, entry in zip(left, answer["data"], strict=True):
                if entry["object"] != "error":
                    vectors[index] = decode_vector(entry["embedding"])
                elif entry["error"]["code"] == "overloaded":
                    late.append(index)
                else:
                    raise _request_error({"index": entry["index"], **entry["error"]}, 400, positions)
            if len(late) == len(left):
                raise ServerError(f"{endpoint}: status 200 with nothing but 'overloaded'")
            usage.update(answer["usage"])
            left = late
        return [vectors[index] for index in range(len(items))], usage

    def post(self, endpoint: str, content: bytes, content_type: str) -> httpx.Response:
        """Sends a request body as it is; with token and retries, whatever the answer's status.

        Raises:
            ServerError: the server cannot be reached.
        """
        request = httpx.Request(
            "POST",
            f"{self._url}/predictions/{endpoint}",
            content=content,
            headers={"Content-Type": content_type},
        )
        return self._send("inference", request)

    def workers(self, endpoint: str) -> list[dict[str, Any]]:
        """The workers of an endpoint as the server lists them: `pid`, `status`, `memoryUsage` and more.

        Raises:
            ServerError: the server cannot be reached, or has no such endpoint.
        """
        workers: list[dict[str, Any]] = self._management(f"/models/{endpoint}")[0]["workers"]
        return workers

    def _predict(
        self, endpoint: str, body: Mapping[str, Any], positions: Sequence[int] = ()
    ) -> dict[str, Any]:
        """An endpoint's answer; `positions` are those of the items in the caller's list, for errors."""
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        response = self.post(endpoint, content, "application/json")
        if response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE and not _says_which(response):
            raise _too_large(body, len(content), positions[0] if positions else 0)
        answer = _json_object(response, endpoint)
        if response.status_code == httpx.codes.OK:
            found = str(answer.get("space_id"))
            if self._space_id not in (None, found):
                raise SpaceError(
                    f"{endpoint} answers in embedding space {found}, wanted is {self._space_id}", found
                )
            return answer
        error = answer.get("error")
        if isinstance(error, dict):
            raise _request_error(error, response.status_code, positions)
        reason = f"{endpoint}: status {response.status_code}: {answer.get('message', answer)}"
        took = response.elapsed.total_seconds()
        if response.status_code in RETRIED_STATUS and took > RETRY_WITHIN_SECONDS:
            reason += f" (after {took:.0f} s, so it was not asked again; send fewer items at once)"
        raise ServerError(reason)

    def _management(self, path: str, params: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        request = httpx.Request("GET", f"{self._management_url}{path}", params=params)
        response = self._send("management", request)
        if response.status_code != httpx.codes.OK:
            raise ServerError(f"{request.url}: status {response.status_code}: {response.text.strip()[:200]}")
        answer: list[dict[str, Any]] = response.json()
        return answer

    def _send(self, kind: str, request: httpx.Request) -> httpx.Response:
        started = 0.0

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
            return self._send_with_token(kind, request)

        try:
            return attempt()
        except httpx.TimeoutException as error:
            raise ServerError(f"{request.url}: no answer in time ({type(error).__name__})") from error
        except httpx.HTTPError as error:
            raise ServerError(
                f"{request.url}: cannot be reached ({error}); is it running? 'make serve'"
            ) from error

    def _send_with_token(self, kind: str, request: httpx.Request) -> httpx.Response:
        if self._tokens is None:
            return self._http.send(request)
        if isinstance(self._tokens, str):
            request.headers["Authorization"] = f"Bearer {self._tokens}"
            return self._http.send(request)
        token = self._cached.get(kind) or self._tokens.token(kind)
        # Another client that renews in the same moment makes the token stale that this one just got.
        for _ in range(TOKEN_ATTEMPTS):
            request.headers["Authorization"] = f"Bearer {token}"
            response = self._http.send(request)
            # TorchServe answers 400, not 401, to a token that is missing, wrong or expired.
            if response.status_code != 400 or b"InvalidKeyException" not in response.content:
                break
            token = self._tokens.renew(kind, token)
        self._cached[kind] = token
        return response


def _http_client(timeout: float, proxy: str | None = None) -> httpx.Client:
    # With a transport of its own a client asks the environment for no proxy, yet still for certificates
    # (SSL_CERT_FILE).
    return httpx.Client(transport=httpx.HTTPTransport(proxy=proxy), timeout=timeout, trust_env=False)


def _encoded(images: Sequence[ImageInput] | ImageInput) -> list[str]:
    listed = [images] if isinstance(images, bytes | str | Path) else images
    contents = (image if isinstance(image, bytes) else Path(image).read_bytes() for image in listed)
    return [base64.b64encode(content).decode("ascii") for content in contents]


def _batches(items: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Cuts items into requests that the server's limits admit: the first item's position, and the items."""
    batch: list[str] = []
    size = start = 0
    for item in items:
        if batch and (len(batch) == ITEMS_PER_REQUEST or size + len(item) > BYTES_PER_REQUEST):
            yield start, batch
            start, batch, size = start + len(batch), [], 0
        batch.append(item)
        size += len(item)
    if batch:
        yield start, batch


def _late(answer: Mapping[str, Any]) -> list[Any]:
    """Items of a comparison that the server had no time for; none where something else is wrong as well."""
    late = [entry for entry in answer["errors"] if entry["error"]["code"] == "overloaded"]
    return late if len(late) == len(answer["errors"]) else []


def _request_error(error: Mapping[str, Any], status: int, positions: Sequence[int] = ()) -> RequestError:
    code, index = str(error.get("code")), error.get("index")
    if index is not None and positions:
        index = positions[index]
    return RequestError(code, str(error.get("message")), 503 if code == "overloaded" else status, index)


def _says_which(response: httpx.Response) -> bool:
    """Whether a 413 is of an item or a limit on items, not of the body, which nobody has read."""
    try:
        return bool(response.json()["error"]["code"] != "request_too_large")
    except (ValueError, TypeError, KeyError):
        return False


def _too_large(body: Mapping[str, Any], size: int, start: int) -> RequestError:
    """What a server refused before it read it; of one picture or text the reason is known."""
    (kind, items) = next(iter(body.items()))
    message = f"the request has {size} bytes, more than the server admits"
    if len(items) != 1:
        return RequestError("request_too_large", f"{message}; send fewer items at once", 413)
    if kind == "input" and isinstance(items[0], str):
        return RequestError("text_too_long", message, 413, start)
    return RequestError(
        "image_too_large", f"{message}, of one picture in base64; make it smaller", 413, start
    )


def _json_object(response: httpx.Response, endpoint: str) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError as error:
        raise ServerError(
            f"{endpoint}: status {response.status_code} with a body that is not JSON"
        ) from error
    if not isinstance(answer, dict):
        raise ServerError(f"{endpoint}: status {response.status_code} with {type(answer).__name__}")
    return answer
