"""Calls of the endpoints."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from clipserve.client.connection import INFERENCE_URL, Connection, failed_late
from clipserve.client.tokens import KEY_FILE, MANAGEMENT_URL, KeyFile
from clipserve.encoder_spec import FloatArray, ScoreKind, decode_vector
from clipserve.errors import RequestError, ServerError, SpaceError

# Below the server's defaults of items per request and of bytes per request (32 MiB, base64 included).
ITEMS_PER_REQUEST = 64
BYTES_PER_REQUEST = 16_000_000

ImageInput = bytes | str | Path
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Similarity:
    """Pictures against texts.

    Attributes:
        cosine_similarity: float64 `[images, texts]` in [-1, 1].
        probabilities: float64 `[images, texts]`: softmax of `logit_scale` · cosine over the texts, whose rows
            sum to 1; or sigmoid of `logit_scale` · cosine + `logit_bias`, of each text by itself.
        logit_scale: exponentiated.
        space_id: of the embedding space that was compared in.
        score: which of the two was taken.
        logit_bias: 0 where the pair was trained with softmax.
    """

    cosine_similarity: Matrix
    probabilities: Matrix
    logit_scale: float
    space_id: str
    score: ScoreKind
    logit_bias: float


@dataclass(frozen=True)
class TextUsage:
    """What texts cost: tokens, texts truncated at the context length, tokens not in the vocabulary."""

    prompt_tokens: int
    truncated: int
    unknown_tokens: int


class Client:
    """Talks to the endpoints; `Management` says whether they are ready, and what they serve.

    Args:
        url: inference address.
        management_url: management address, where tokens are renewed and `Management` asks.
        tokens: a key file or its path, a fixed inference token, or None for a server that asks for none.
        http: connections of the caller's, such as with a certificate authority, headers or a transport of its
            own; its timeout and proxy hold, and the caller closes it. Tokens are renewed without it.
        timeout: seconds that one request may take.
        proxy: URL of a proxy to go through. The environment's (`HTTP_PROXY` …) are not asked: they would be
            shown every token and every picture.
        retries: ask again for up to half a minute where the server cannot be reached or fails; not where a
            person waits for the answer, and would rather be told.

    Raises:
        ServerError: an address is none.

    A client is safe to use from several threads.

    Attributes:
        connection: what requests go through.
    """

    def __init__(
        self,
        url: str = INFERENCE_URL,
        management_url: str = MANAGEMENT_URL,
        tokens: KeyFile | Path | str | None = KEY_FILE,
        *,
        http: httpx.Client | None = None,
        timeout: float = 100.0,  # more than the archives' responseTimeout
        proxy: str | None = None,
        retries: bool = True,
    ):
        self.connection = Connection(url, management_url, tokens, http, timeout, proxy, retries)
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
        """Closes the connections, unless they are the caller's."""
        self.connection.close()

    def require_space(self, space_id: str) -> None:
        """From now on, an answer in another embedding space raises `SpaceError`."""
        self._space_id = space_id

    def embed(self, items: Sequence[ImageInput] | ImageInput) -> FloatArray:
        """Embeds texts and pictures in one list: float32 `[N, D]`, in its order; one alone is a list of one.

        Args:
            items: a text is a str, a picture encoded bytes or the `Path` of a file.

        Raises:
            RequestError: an item is wrong; `index` says which.
            ServerError: the server cannot be reached or fails.
            OSError: a file cannot be read.
        """
        listed = [items] if isinstance(items, bytes | str | Path) else [*items]
        vectors: dict[int, FloatArray] = {}

        def fill(places: Sequence[int], embed: Callable[[], FloatArray]) -> None:
            try:
                vectors.update(zip(places, embed(), strict=True))
            except RequestError as error:
                if error.index is None:
                    raise
                raise error.at(places[error.index]) from error

        texts = {index: item for index, item in enumerate(listed) if isinstance(item, str)}
        images = {index: item for index, item in enumerate(listed) if not isinstance(item, str)}
        fill([*texts], lambda: self.embed_texts([*texts.values()]))
        fill([*images], lambda: self.embed_images([*images.values()]))
        found = [vectors[index] for index in range(len(listed))]
        return np.stack(found) if found else np.empty((0, 0), np.float32)

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
        score: ScoreKind | None = None,
    ) -> Similarity:
        """Compares pictures with texts, or with labels put into a template such as `a photo of {}`.

        Args:
            score: how probabilities are made of cosines; None as the pair was trained. With `softmax` those
                of a picture sum to 1: which label fits best, if one does.

        Raises:
            RequestError: an item or the request is wrong.
            ServerError: the server cannot be reached or fails.
            OSError: a file cannot be read.
        """
        body: dict[str, Any] = {"images": _encoded(images)}
        given = {"texts": texts, "labels": labels, "template": template, "score": score}
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
            answer["score"],
            float(answer["logit_bias"]),
        )

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
        return self.connection.predict(endpoint, content, content_type)

    def _predict(
        self, endpoint: str, body: Mapping[str, Any], positions: Sequence[int] = ()
    ) -> dict[str, Any]:
        """An endpoint's answer; `positions` are those of the items in the caller's list, for errors."""
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        response = self.post(endpoint, content, "application/json")
        if response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE and not _says_which(response):
            raise _too_large(body, len(content), positions[0] if positions else 0)
        self.connection.check_token(response)
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
        took = failed_late(response)
        if took is not None:
            reason += f" (after {took:.0f} s, so it was not asked again; send fewer items at once)"
        raise ServerError(reason)


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
