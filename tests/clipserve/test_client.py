"""The client against stand-ins for a server, which count what they are asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from clipserve.certificate import Golden, ParityBound, ParityCertificate
from clipserve.client import Client, KeyFile, Management, MissingKeyFileError, calls, connection
from clipserve.client.connection import RETRIES_AT_LEAST, RETRY_WITHIN_SECONDS
from clipserve.encoder_spec import (
    SCHEMA_VERSION,
    EncoderSpec,
    Score,
    encode_vector,
)
from clipserve.endpoint_status import EndpointStatus, Worker
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import RequestError, ServerError
from clipserve.preprocessing import TextPreprocessing

Answer = tuple[int, bytes]

SCORE = {"score": "softmax", "logit_scale": 1.0, "logit_bias": 0.0}


class Asked:
    """What a stand-in was asked: request lines with headers, and bodies."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.bodies: list[bytes] = []

    @property
    def text(self) -> str:
        return "\n".join(self.heads) + b"\n".join(self.bodies).decode("utf-8", "replace")


@contextmanager
def standing_in(answer: Callable[[str, bytes], Answer]) -> Iterator[tuple[str, Asked]]:
    """A server that answers every request as told: its URL, and what it is asked."""
    asked = Asked()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.heads.append(f"{self.requestline}\n{self.headers}")
            asked.bodies.append(body)
            status, content = answer(self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    for method in ("GET", "POST", "CONNECT"):
        setattr(Handler, f"do_{method}", Handler.answer)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}", asked
        finally:
            http.shutdown()
            thread.join()


def embeddings(path: str, body: bytes) -> Answer:
    """As an endpoint answers: the n-th item gets an embedding of n."""
    asked = json.loads(body)
    if "images" in asked:
        texts = asked.get("texts", asked.get("labels"))
        shape = (len(asked["images"]), 1 if isinstance(texts, str) else len(texts))
        matrix = np.zeros(shape).tolist()
        answer = {"cosine_similarity": matrix, "probabilities": matrix, **SCORE, "errors": []}
        return 200, json.dumps(answer | {"space_id": "s"}).encode()
    data = [
        {"object": "embedding", "index": i, "embedding": encode_vector(np.full(3, i, np.float32))}
        for i in range(len(asked["input"]))
    ]
    usage = {"prompt_tokens": 1, "truncated": 0, "unknown_tokens": 0}
    return 200, json.dumps({"space_id": "s", "data": data, "usage": usage}).encode()


def answered(request: httpx.Request) -> httpx.Response:
    """As `embeddings`, without a network."""
    status, content = embeddings(request.url.path, request.content)
    return httpx.Response(status, content=content)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.png"
    path.write_bytes(b"\x89PNG")
    return path


# ---- one item where a list is wanted


def test_one_text_is_a_list_of_one() -> None:
    """CASES 9: not a vector a letter."""
    with standing_in(embeddings) as (url, asked), Client(url, url, "token") as client:
        assert client.embed_texts("two dogs").shape == (1, 3)
        assert client.embed_texts_with_usage("two dogs")[0].shape == (1, 3)
        assert client.embed_texts(["two", "dogs"]).shape == (2, 3)
        assert client.embed_texts("").shape == (1, 3)
    assert [json.loads(body)["input"] for body in asked.bodies] == [
        *(["two dogs"], ["two dogs"], ["two", "dogs"], [""])
    ]


def test_one_picture_is_a_list_of_one(picture: Path) -> None:
    """CASES 9."""
    with standing_in(embeddings) as (url, asked), Client(url, url, "token") as client:
        for one in (picture, str(picture), picture.read_bytes()):
            assert client.embed_images(one).shape == (1, 3)
            assert client.similarity(one, "two dogs").cosine_similarity.shape == (1, 1)
            assert client.similarity([one], labels="dog").cosine_similarity.shape == (1, 1)
    sent = [json.loads(body) for body in asked.bodies]
    assert {json.dumps(body.get("images", body.get("input"))) for body in sent} == {
        *('[{"image": "iVBORw=="}]', '["iVBORw=="]')
    }


# ---- tokens and proxies


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_no_proxy_of_the_environment_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """ATTACKS C1: it would see tokens, the API key that never ends, and bodies, in clear."""
    stale = json.dumps({"code": 400, "type": "InvalidKeyException"}).encode()
    tokens = {"inference": {"key": "stale-token"}, "management": {"key": "m"}, "API": {"key": "the-api-key"}}
    key_file = tmp_path / "key_file.json"
    key_file.write_text(json.dumps(tokens))

    def server(path: str, body: bytes) -> Answer:
        if path.startswith("/token"):
            key_file.write_text(json.dumps(tokens | {"inference": {"key": "fresh-token"}}))
            return 200, b"{}"
        return (400, stale) if "stale-token" in asked.heads[-1] else embeddings(path, body)

    with standing_in(lambda path, body: (502, b"")) as (proxy, seen), standing_in(server) as (url, asked):
        monkeypatch.setenv(name, proxy)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with Client(url, url, key_file) as client:
            assert client.embed_texts("two dogs").shape == (1, 3)
        assert "the-api-key" in asked.text
        assert seen.heads == []
        # Explicitly it is, for who wants it.
        with Client("http://clip.example", url, "token", proxy=proxy) as client, pytest.raises(ServerError):
            client.embed_texts("two dogs")
        assert "http://clip.example/predictions/clip_text" in seen.text


def test_a_server_that_asks_for_no_token() -> None:
    """CASES 58: `tokens=None` as the docstring says."""
    with standing_in(embeddings) as (url, asked), Client(url, url, None) as client:
        assert client.embed_texts("two dogs").shape == (1, 3)
    assert "authorization" not in asked.text.lower()


def test_outside_of_the_servers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES 58: a server answers, but its key file is elsewhere: no waiting, and the line to write."""
    monkeypatch.chdir(tmp_path)
    # The client's own name for it: threads of other tests sleep as well.
    waited = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: pytest.fail("waited"))
    monkeypatch.setattr("clipserve.client.management.time", waited)
    with standing_in(lambda path, body: (404, b"")) as (url, _), Client(url, url) as client:
        for ask in (Management(client).wait_ready, lambda: client.embed_texts("two dogs")):
            with pytest.raises(MissingKeyFileError) as caught:
                ask()
            message = str(caught.value)
            assert str(tmp_path / "key_file.json") in message
            assert "Client(tokens=Path('" in message
            # One traceback, not a stack of them.
            assert caught.value.__cause__ is None
            assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("tokens", "words"),
    [("/the/servers/folder/key_file.json", "refuses the token"), (None, "asks for a token")],
)
def test_a_token_that_is_refused(tokens: str | None, words: str) -> None:
    """CASES 58: the path of a key file as a string is taken for a token: 120 s of silence, and no reason."""
    stale = json.dumps({"code": 400, "type": "InvalidKeyException", "message": "Token Authorization failed"})
    with (
        standing_in(lambda path, body: (400, stale.encode())) as (url, asked),
        Client(url, url, tokens) as client,
    ):
        for ask in (
            lambda: client.embed_texts("a"),
            lambda: client.similarity([b""], "a"),
            Management(client).wait_ready,
        ):
            with pytest.raises(ServerError, match=rf"{words}.*Client\(tokens=Path\(") as caught:
                ask()
            assert "/key_file.json:" not in str(caught.value)
    assert len(asked.heads) == 3


def test_a_token_as_it_is_read_from_a_file() -> None:
    """CASES 58, 33: with a line end it could stand in no header, and the message about that quoted it."""
    with standing_in(embeddings) as (url, asked), Client(url, url, "the-token\n") as client:
        assert client.embed_texts("a").shape == (1, 3)
    assert "Bearer the-token\n" in asked.text


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8080", "localhost", "http://", "http://[::1", "http://127.0.0.1:80808", "ftp://a"]
)
def test_what_is_no_address(url: str) -> None:
    """CASES 58, 61: httpx' own error, or half a minute of asking port 80808 modulo 65536."""
    for addresses in ({"url": url}, {"management_url": url}):
        with pytest.raises(ServerError, match=r"is no address of a server; one is http://127\.0\.0\.1:8080"):
            Client(**addresses)


def test_a_server_that_starts_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES 58, its other half: where nobody listens yet, the file may still come."""
    path = tmp_path / "key_file.json"
    with standing_in(embeddings) as (url, _):
        pass

    def write(seconds: float) -> None:
        path.write_text(json.dumps({"management": {"key": "m"}}))

    monkeypatch.setattr(
        "clipserve.client.management.time", SimpleNamespace(monotonic=time.monotonic, sleep=write)
    )
    with Client(url, url, path) as client, pytest.raises(ServerError, match="cannot be reached"):
        Management(client).wait_ready(0.5)
    assert path.is_file()


def test_a_path_is_a_key_file(tmp_path: Path) -> None:
    """CASES 58: the line that the message gives."""
    path = tmp_path / "key_file.json"
    path.write_text(json.dumps({"inference": {"key": "from-the-file"}}))
    with standing_in(embeddings) as (url, asked):
        for tokens in (path, KeyFile(path)):
            with Client(url, url, tokens) as client:
                client.embed_texts("two dogs")
    assert asked.text.count("Bearer from-the-file") == 2


def test_threads_renew_a_token_once(tmp_path: Path) -> None:
    """All find it expired at once; one asks for a new one, and the others take that."""
    together = threading.Barrier(8)
    tokens = {"inference": {"key": "stale"}, "API": {"key": "the-api-key"}}
    key_file = tmp_path / "key_file.json"
    key_file.write_text(json.dumps(tokens))
    refusal = json.dumps({"code": 400, "type": "InvalidKeyException"}).encode()

    def server(request: httpx.Request) -> httpx.Response:
        if request.headers["Authorization"] == "Bearer stale":
            together.wait(30)
            return httpx.Response(400, content=refusal)
        return answered(request)

    def renewals(path: str, body: bytes) -> Answer:
        key_file.write_text(json.dumps(tokens | {"inference": {"key": "fresh"}}))
        return 200, b"{}"

    with (
        standing_in(renewals) as (url, asked),
        httpx.Client(transport=httpx.MockTransport(server)) as http,
        Client("http://clip.example", url, key_file, http=http) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        shapes = [
            future.result().shape for future in [pool.submit(client.embed_texts, "a") for _ in range(8)]
        ]
    assert shapes == [(1, 3)] * 8
    assert len(asked.heads) == 1
    assert "Bearer the-api-key" in asked.text


# ---- connections of the caller's


def test_connections_of_the_callers() -> None:
    """Its headers are sent, `tokens=None` leaves authorization to it, and it is closed by who made it."""
    seen: list[httpx.Request] = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answered(request)

    with httpx.Client(
        transport=httpx.MockTransport(server), headers={"X-Gateway": "ours"}, auth=("user", "word")
    ) as http:
        for tokens, scheme in ((None, "Basic "), ("a-token", "Bearer a-token")):
            with Client("https://clip.example/clip/", tokens=tokens, http=http) as client:
                assert client.embed_texts("two dogs").shape == (1, 3)
            assert not http.is_closed
            assert seen[-1].headers["Authorization"].startswith(scheme)
            assert seen[-1].headers["X-Gateway"] == "ours"
            assert str(seen[-1].url) == "https://clip.example/clip/predictions/clip_text"
    with Client() as client:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        client.embed_texts("two dogs")


# ---- what a server says of itself


def spec(**changes: Any) -> EncoderSpec:
    vector = encode_vector(np.full(3, 1, np.float32))
    given: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "format": "torchscript",
        "cpu_capability": None,
        "model_id": "m",
        "checkpoint": "c",
        "modality": "text",
        "embedding_dim": 3,
        "normalized": True,
        "device": "cpu",
        "precision": "fp32",
        "image": None,
        "score": Score("softmax", 100.0),
        "versions": {},
        "license": None,
        "text": TextPreprocessing(77, 1000, 0, "t"),
        **dict.fromkeys(("checkpoint_sha256", "artifact_sha256", "space_id"), "s"),
        "certificate": ParityCertificate(ParityBound(1e-5, None), 0.0, 1.0, 1.0, (), Golden("1", vector)),
    }
    return EncoderSpec(**given | changes)


def without_nulls(value: Any) -> Any:
    """As TorchServe passes JSON on."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


def as_torchserve(status: EndpointStatus, told: Any = None) -> Any:
    workers = [{"id": "9000", "status": w.status, "pid": w.pid, "gpu": False} for w in status.workers]
    metadata = {"encoders": without_nulls([*status.encoders])} if told is None else told
    model = {"modelName": "clip_text", "minWorkers": status.min_workers, "workers": workers}
    return [model | {"customizedMetadata": metadata}]


STATUS = EndpointStatus([Worker(7, "READY"), Worker(-1, "LOADING")], 2, [json.loads(spec().to_json())])


@pytest.mark.parametrize("name", list(ENDPOINTS))
def test_an_endpoint_is_asked_by_its_whole_path(name: str) -> None:
    """The proxy of docs/deployment.md lets no other through: `/predictions/v1` was 404 there."""
    server = httpx.MockTransport(lambda request: httpx.Response(200, text=request.url.path))
    with httpx.Client(transport=server) as http, Client(tokens=None, http=http) as client:
        assert client.post(name, b"", "text/plain").text == f"/predictions/{ENDPOINTS[name].path}"


@pytest.mark.parametrize("answer", [STATUS.to_json(), as_torchserve(STATUS)], ids=["ours", "TorchServe"])
def test_what_a_server_says_of_itself(answer: Any) -> None:
    """The same, whichever server says it."""
    server = httpx.MockTransport(lambda request: httpx.Response(200, json=answer))
    with httpx.Client(transport=server) as http, Client(tokens=None, http=http) as client:
        management = Management(client)
        assert management.workers("clip_text") == STATUS.workers
        assert management.specs("clip_text") == [spec()]
        with pytest.raises(ServerError, match=r"1 of 2 workers are ready \(READY, LOADING\)"):
            management.check_ready(["clip_text"])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({}, "does not say what runs"),
        ([], "does not say what runs"),
        ("a sentence", "does not say what runs"),
        (as_torchserve(STATUS, "its worker is busy"), "does not say what it serves"),
        (EndpointStatus([], 1, [{"schema_version": 1}]).to_json(), "clip_text: schema_version 1, this"),
    ],
)
def test_what_says_nothing(answer: Any, words: str) -> None:
    server = httpx.MockTransport(lambda request: httpx.Response(200, json=answer))
    with (
        httpx.Client(transport=server) as http,
        Client(tokens=None, http=http) as client,
        pytest.raises(ServerError, match=words),
    ):
        Management(client).specs("clip_text")


# ---- bodies that are too large


@pytest.mark.parametrize(
    "answer",
    [b"", b'{"error": {"code": "request_too_large", "message": "the body has 5 bytes"}}', b'"x"'],
    ids=["TorchServe", "Ray", "a proxy"],
)
def test_a_picture_beyond_what_the_server_reads(answer: bytes) -> None:
    """CASES 34: TorchServe says 413 and nothing else."""
    with standing_in(lambda path, body: (413, answer)) as (url, asked), Client(url, url, "token") as client:
        for ask in (
            lambda: client.embed_images([b"x" * 99]),
            lambda: client.similarity(b"x" * 99, ["a", "b"]),
        ):
            with pytest.raises(RequestError, match="bytes, more than the server admits") as caught:
                ask()
            assert (caught.value.code, caught.value.status, caught.value.index) == ("image_too_large", 413, 0)
        with pytest.raises(RequestError) as caught:
            client.embed_images([b"x", b"y"])
        assert (caught.value.code, caught.value.index) == ("request_too_large", None)
        with pytest.raises(RequestError) as caught:
            client.embed_texts("a")
        assert (caught.value.code, caught.value.index) == ("text_too_long", 0)
    assert len(asked.heads) == 4


def test_which_picture_was_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES 34: the index is the caller's, not the request's."""
    monkeypatch.setattr(calls, "BYTES_PER_REQUEST", 10)

    def answer(path: str, body: bytes) -> Answer:
        return (413, b"") if len(body) > 200 else embeddings(path, body)

    with (
        standing_in(answer) as (url, _),
        Client(url, url, "token") as client,
        pytest.raises(RequestError) as caught,
    ):
        client.embed_images([b"x" * 5, b"y" * 5, b"z" * 500])
    assert (caught.value.code, caught.value.index) == ("image_too_large", 2)


def test_an_items_own_413_stays_what_it_is() -> None:
    """CASES 34: a server that read the body knows better."""
    error = {"error": {"code": "image_too_large", "message": "of 99 megapixels", "index": 1}}
    with (
        standing_in(lambda path, body: (413, json.dumps(error).encode())) as (url, _),
        Client(url, url, "token") as client,
        pytest.raises(RequestError, match="megapixels") as caught,
    ):
        client.embed_images([b"x", b"y"])
    assert caught.value.index == 1


# ---- retries


@pytest.mark.parametrize("status", [500, 503, 507])
@pytest.mark.parametrize("slow", [False, True])
def test_what_took_the_servers_whole_time_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, status: int, slow: bool
) -> None:
    """ATTACKS A: the worker that died of it is followed by one that would, too."""
    monkeypatch.setattr(connection, "RETRIES_SECONDS", 0.0)
    # Whatever an attempt takes, it is more, or less, than this.
    monkeypatch.setattr(connection, "RETRY_WITHIN_SECONDS", -1.0 if slow else 1e9)
    failure = json.dumps({"code": status, "message": "Worker died."}).encode()
    with (
        standing_in(lambda path, body: (status, failure)) as (url, asked),
        Client(url, url, "token") as client,
        pytest.raises(ServerError, match="Worker died") as caught,
    ):
        client.embed_texts("two dogs")
    assert len(asked.heads) == (1 if slow else RETRIES_AT_LEAST)
    assert ("not asked again" in str(caught.value)) == slow


def test_retries_end_below_the_servers_deadlines() -> None:
    """A failure is taken for the end of one of them by the time that it took."""
    settings = pytest.importorskip("clipserve.settings", reason="a worker's packages are not here")
    assert settings.Settings().max_seconds > RETRY_WITHIN_SECONDS


def in_part(most: int) -> Callable[[str, bytes], Answer]:
    """As `embeddings`, but with time for so many items of each request only, the last ones."""

    def answer(path: str, body: bytes) -> Answer:
        asked = json.loads(body)["input"]
        data: list[dict[str, Any]] = []
        for index, item in enumerate(asked):
            if index < len(asked) - most:
                data.append(
                    {"object": "error", "index": index, "error": {"code": "overloaded", "message": "x"}}
                )
            elif item == "wrong":
                data.append({"object": "error", "index": index, "error": {"code": "odd", "message": "x"}})
            else:
                vector = encode_vector(np.full(3, int(item), np.float32))
                data.append({"object": "embedding", "index": index, "embedding": vector})
        usage = {"prompt_tokens": min(most, len(asked)), "truncated": 0, "unknown_tokens": 0}
        return 200, json.dumps({"space_id": "s", "data": data, "usage": usage}).encode()

    return answer


def test_what_the_server_had_no_time_for_is_asked_for_again() -> None:
    """ATTACKS A8: the largest request is answered in part; the caller gets all of it."""
    with standing_in(in_part(3)) as (url, asked), Client(url, url, tokens=None) as client:
        vectors, usage = client.embed_texts_with_usage([str(number) for number in range(8)])
    assert vectors[:, 0].tolist() == list(range(8))
    assert usage.prompt_tokens == 8
    assert [len(json.loads(body)["input"]) for body in asked.bodies] == [8, 5, 2]


def test_which_item_of_those_that_were_asked_for_again_is_wrong() -> None:
    with (
        standing_in(in_part(2)) as (url, _),
        Client(url, url, tokens=None) as client,
        pytest.raises(RequestError) as caught,
    ):
        client.embed_texts(["0", "1", "wrong", "3", "4", "5"])
    assert (caught.value.code, caught.value.index, caught.value.status) == ("odd", 2, 400)


@pytest.mark.parametrize(("texts", "requests"), [(7, 4), (3, 2)])
def test_a_comparison_goes_on_as_long_as_the_server_gets_on(texts: int, requests: int) -> None:
    """ATTACKS A8: it remembers texts, two more each time."""
    known = [0]

    def answer(path: str, body: bytes) -> Answer:
        known[0] += 2
        late = range(known[0], texts)
        errors = [
            {"input": "texts", "error": {"code": "overloaded", "message": "x", "index": i}} for i in late
        ]
        matrix = np.zeros((1, texts)).tolist()
        shape = {"cosine_similarity": matrix, "probabilities": matrix, **SCORE}
        return 200, json.dumps(shape | {"errors": errors, "space_id": "s"}).encode()

    with standing_in(answer) as (url, asked), Client(url, url, tokens=None) as client:
        found = client.similarity([b"picture"], [str(number) for number in range(texts)])
    assert found.cosine_similarity.shape == (1, texts)
    assert len(asked.bodies) == requests


def test_a_comparison_that_does_not_get_on() -> None:
    """ATTACKS A6: pictures are not remembered; who sends fewer gets an answer."""

    def answer(path: str, body: bytes) -> Answer:
        errors = [{"input": "images", "error": {"code": "overloaded", "message": "x", "index": 1}}]
        shape = {"cosine_similarity": [[0.0], None], "probabilities": [[1.0], None], **SCORE}
        return 200, json.dumps(shape | {"errors": errors, "space_id": "s"}).encode()

    with (
        standing_in(answer) as (url, asked),
        Client(url, url, tokens=None) as client,
        pytest.raises(RequestError) as caught,
    ):
        client.similarity([b"picture", b"other"], ["a"])
    assert (caught.value.code, caught.value.index, caught.value.status) == ("overloaded", 1, 503)
    assert len(asked.bodies) == 2
