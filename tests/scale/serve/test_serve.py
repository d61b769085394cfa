"""Ray Serve with narrow limits: OpenAI's clients, full queues, stuck workers, and its end.

A server of the demo encoders, started as `make serve-ray` starts it, but with queues of four requests and
workers that may take nine seconds. That its answers are TorchServe's, `tests/http --server ray` shows.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("openai") is None:
    pytest.skip("needs .venv-scale: make test-scale", allow_module_level=True)

import httpx
import numpy as np
import openai
import psutil
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from clipserve.client import Client, KeyFile, Management
from clipserve.encoder_spec import read_spec
from reliability.ray_server import actor_process
from serving.local import CONFIG, ROOT, free_ports

STORE = ROOT / "model_store" / "demo"
PICTURE = ROOT / "demo" / "pictures" / "two-dogs-in-the-snow.jpg"

QUEUE = 4
BATCH = 2
RESPONSE_SECONDS = 9


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not pytest's folder: Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        yield Path(folder)


class Collector:
    """Takes spans as an OpenTelemetry collector does, by OTLP over HTTP."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def spans(self, trace_id: str) -> list[Span]:
        return [
            span
            for body in [*self.bodies]
            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
            if span.trace_id.hex() == trace_id
        ]

    def wait(self, trace_id: str) -> list[Span]:
        deadline = time.monotonic() + 60
        while not self.spans(trace_id) and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.spans(trace_id)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


@pytest.fixture(scope="module")
def process(folder: Path, collector: Collector) -> Iterator[subprocess.Popen[str]]:
    """The server; the last test of this file ends it."""
    handlers = Path(shutil.copytree(ROOT / "handlers", folder / "handlers"))
    for path in handlers.glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"batchSize: \d+", f"batchSize: {BATCH}", text)
        text = re.sub(r"responseTimeout: \d+", f"responseTimeout: {RESPONSE_SECONDS}", text)
        path.write_text(text, encoding="utf-8")
    config = folder / "config.properties"
    config.write_text(re.sub(r"job_queue_size=\d+", f"job_queue_size={QUEUE}", CONFIG.read_text()))
    (port,) = free_ports(1)
    with (
        (folder / "stderr.log").open("w") as errors,
        subprocess.Popen(
            [
                *(sys.executable, "-m", "scale.serve", "--store", STORE, "--port", str(port)),
                *("--key-file", folder / "key_file.json", "--temporary", folder),
                *("--handlers", handlers, "--config", config, "--traces", collector.url),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            with (folder / "told").open("w") as told:
                for line in process.stdout:
                    told.write(line)
                    if line.strip() == "Ctrl-C stops it.":
                        break
            assert process.poll() is None, (folder / "stderr.log").read_text()
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def url(process: subprocess.Popen[str], folder: Path) -> str:
    found = re.search(r"ready at (\S+)", (folder / "told").read_text())
    assert found is not None
    return found.group(1)


@pytest.fixture(scope="module")
def token(url: str, folder: Path) -> str:
    return KeyFile(folder / "key_file.json").token("inference")


@pytest.fixture
def client(url: str, folder: Path) -> Iterator[Client]:
    with Client(url, url, KeyFile(folder / "key_file.json")) as client:
        yield client


@pytest.fixture(scope="module")
def http(url: str, token: str) -> Iterator[httpx.Client]:
    limits = httpx.Limits(max_connections=100)
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=url, headers=headers, timeout=120, limits=limits) as http:
        yield http


@pytest.fixture(scope="module")
def ai(url: str, token: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as ai:
        yield ai


@pytest.fixture
def replica(process: subprocess.Popen[str]) -> Callable[[str], psutil.Process]:
    """Finds the one process of an endpoint's replica."""

    def find(name: str) -> psutil.Process:
        family = psutil.Process(process.pid).children(recursive=True)
        return actor_process(family, f"ServeReplica:clipserve:{name}")

    return find


# ---- OpenAI's client


TEXTS = ["two dogs in the snow", "két kutya a hóban", "雪の中の二匹の犬", ""]


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_openai_embeddings_are_the_endpoints(
    ai: openai.OpenAI, client: Client, options: dict[str, Any]
) -> None:
    answer = ai.embeddings.create(model="demo", input=TEXTS, **options)
    found = [
        np.frombuffer(base64.b64decode(d.embedding), "<f4") if isinstance(d.embedding, str) else d.embedding
        for d in answer.data
    ]
    np.testing.assert_allclose(found, client.embed_texts(TEXTS), rtol=0, atol=2e-6)
    assert [d.index for d in answer.data] == [0, 1, 2, 3]
    assert (answer.object, answer.model) == ("list", "demo")
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)


def test_openai_one_text_and_its_own_dimensions(ai: openai.OpenAI) -> None:
    dim = read_spec(next(STORE.glob("*-text-*.pt"))).embedding_dim
    answer = ai.embeddings.create(model="demo", input=TEXTS[0], dimensions=dim, user="somebody")
    assert [len(d.embedding) for d in answer.data] == [dim]


def test_openai_models(ai: openai.OpenAI) -> None:
    (model,) = ai.models.list()
    assert model.id == "demo"
    assert abs(time.time() - model.created) < 3600
    assert ai.models.retrieve("demo") == model
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        ai.models.retrieve("text-embedding-3-small")


@pytest.mark.parametrize(
    ("asked", "error", "code", "param"),
    [
        ({"model": "text-embedding-3-small", "input": "a"}, openai.NotFoundError, "model_not_found", None),
        ({"model": "demo", "input": [9906, 1917]}, openai.BadRequestError, "invalid_request", None),
        ({"model": "demo", "input": [[9906], [1917]]}, openai.BadRequestError, "invalid_request", None),
        ({"model": "demo", "input": "a", "dimensions": 16}, openai.BadRequestError, "invalid_request", None),
        (
            {"model": "demo", "input": ["a", "b" * 20_001]},
            openai.BadRequestError,
            "text_too_long",
            "input[1]",
        ),
        ({"model": "demo", "input": []}, openai.BadRequestError, "empty_request", None),
        (
            {"model": "demo", "input": "a", "extra_body": {"n": 2}},
            openai.BadRequestError,
            "invalid_request",
            None,
        ),
    ],
    ids=["model", "tokens", "lists of tokens", "dimensions", "one item", "nothing", "unknown"],
)
def test_openai_errors(
    ai: openai.OpenAI, asked: dict[str, Any], error: type[openai.APIStatusError], code: str, param: str | None
) -> None:
    with pytest.raises(error) as refused:
        ai.embeddings.create(**asked)
    assert (refused.value.code, refused.value.param) == (code, param)
    assert refused.value.type == "invalid_request_error"
    assert refused.value.message


def test_openai_without_the_token(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.embeddings.create(model="demo", input="a")
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()


def test_openai_paths_that_are_not_there(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="Not Found"):
        ai.chat.completions.create(model="demo", messages=[])


# ---- traces


SECRET = "zweihundfuenfzig"


@pytest.mark.parametrize(
    ("path", "route", "text", "status"),
    [
        ("/v1/embeddings", "/v1/embeddings", SECRET, 200),
        ("/predictions/clip_text", "/predictions/clip_text", SECRET, 200),
        ("/predictions/v1/embeddings", "/predictions/v1/{version}", SECRET * 2000, 413),
        (f"/predictions/{SECRET}", "/predictions/{endpoint}", SECRET, 404),
    ],
)
def test_a_request_is_a_span(
    http: httpx.Client, collector: Collector, token: str, path: str, route: str, text: str, status: int
) -> None:
    trace_id, parent = secrets.token_hex(16), secrets.token_hex(8)
    answer = http.post(
        path,
        json={"input": text},
        params={"key": SECRET},
        headers={"traceparent": f"00-{trace_id}-{parent}-01", "X-Request-Id": SECRET},
    )
    assert answer.status_code == status
    (span,) = collector.wait(trace_id)
    assert span.parent_span_id.hex() == parent
    assert (span.name, span.kind) == (f"POST {route}", Span.SPAN_KIND_SERVER)
    assert span.end_time_unix_nano > span.start_time_unix_nano
    # A caller's mistake is none of the server's.
    assert span.status.code == Status.STATUS_CODE_UNSET
    found = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
    assert found == {
        "http.request.method": "POST",
        "http.route": route,
        "http.response.status_code": status,
    }
    assert not span.events
    sent = b"".join(collector.bodies)
    assert SECRET.encode() not in sent
    assert token.encode() not in sent


def test_what_is_not_sampled_is_not_sent(http: httpx.Client, collector: Collector) -> None:
    kept, left_out = secrets.token_hex(16), secrets.token_hex(16)
    for trace_id, flags in ((left_out, "00"), (kept, "01")):
        headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"}
        assert http.get("/v1/models", headers=headers).status_code == 200
    assert len(collector.wait(kept)) == 1
    assert collector.spans(left_out) == []


# ---- back-pressure and stuck workers


def test_more_requests_than_the_queue_holds_are_told_to_come_back(
    http: httpx.Client,
    ai: openai.OpenAI,
    client: Client,
    replica: Callable[[str], psutil.Process],
) -> None:
    """A stopped replica holds two batches and the queue four requests: the rest is refused at once."""
    expected = client.embed_texts(["a dog"])
    # Far more than replica, queue and what is just on its way between them hold.
    flood = 40
    stopped = replica("v1")
    stopped.suspend()
    try:
        with ThreadPoolExecutor(flood) as pool:
            asked: list[Future[httpx.Response]] = [
                pool.submit(http.post, "/predictions/v1/embeddings", json={"input": "a dog"})
                for _ in range(flood)
            ]
            while sum(future.done() for future in asked) < flood // 2:
                time.sleep(0.05)
            # So is OpenAI's client, in its words, by the short path.
            with pytest.raises(openai.InternalServerError) as told:
                ai.embeddings.create(model="demo", input="a")
            assert (told.value.status_code, told.value.code) == (503, "overloaded")
            assert told.value.type == "server_error"
            stopped.resume()
            answers = [future.result() for future in asked]
    finally:
        stopped.resume()
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 503}
    assert statuses[503] >= flood // 2
    for answer in answers:
        if answer.status_code == 503:
            error = answer.json()["error"]
            assert (error["code"], error["message"]) == ("overloaded", "4 requests wait already; ask again")
        else:
            np.testing.assert_allclose([answer.json()["data"][0]["embedding"]], expected, rtol=0, atol=2e-6)


def test_a_stuck_worker_is_replaced_and_its_caller_told(
    http: httpx.Client, client: Client, replica: Callable[[str], psutil.Process]
) -> None:
    stuck = replica("clip_image")
    stuck.suspend()
    try:
        answer = http.post("/predictions/clip_image", content=PICTURE.read_bytes())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        _, alive = psutil.wait_procs([stuck], timeout=120)
        assert alive == []
        Management(client).wait_ready(120)
        assert client.embed_images([PICTURE]).shape[0] == 1
    finally:
        if stuck.is_running():
            stuck.resume()


# ---- the end


def test_ctrl_c_under_load_leaves_nothing(
    process: subprocess.Popen[str], url: str, token: str, folder: Path
) -> None:
    """As a terminal sends it, to the whole group: answers or failures, nothing between, and no process."""
    key_file = folder / "key_file.json"
    told = (folder / "told").read_text()
    assert str(key_file) in told
    assert told.count(f"curl -s -H 'Authorization: Bearer {token}'") == 3
    parent = psutil.Process(process.pid)
    family = [parent, *parent.children(recursive=True)]
    right: list[bool] = []
    statuses: list[int] = []

    def ask() -> None:
        with httpx.Client(timeout=60, headers={"Authorization": f"Bearer {token}"}) as http:
            while True:
                try:
                    response = http.post(f"{url}/predictions/clip_text", json={"input": "a dog"})
                except httpx.HTTPError:
                    return
                if response.status_code != 200:
                    statuses.append(response.status_code)
                    return
                right.append(len(response.json()["data"][0]["embedding"]) == 512)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(right) < 50:
        assert any(thread.is_alive() for thread in threads), statuses
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    for thread in threads:
        thread.join(60)
    assert process.wait(120) == 130
    errors = (folder / "stderr.log").read_text()
    assert "Traceback" not in errors, errors
    assert all(right)
    assert set(statuses) <= {500, 503}
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    assert not key_file.exists()
    assert json.dumps(token) not in "".join(p.read_text(errors="replace") for p in folder.rglob("*.log"))
