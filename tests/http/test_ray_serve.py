"""What only Ray Serve has: replicas that die under load, its own doors, its start and its end."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest

from clipserve.client import Management
from clipserve.encoder_spec import FloatArray
from reliability.ray_server import actor_process
from scale.ray_files import token_file
from scale.serve.server_process import SCALE_PYTHON
from serving.local import ROOT, free_ports
from tests.http.api import AnyServer, Api, b64, picture, vectors

pytestmark = pytest.mark.ray_only("TorchServe's counterparts are in the other files")

SAME = 2e-6


def replica(server: AnyServer, name: str) -> psutil.Process:
    """The one process of a deployment's replica."""
    return actor_process(server.processes(), f"ServeReplica:clipserve:{name}")


# ---- its files


def test_its_files_are_for_its_owner_only(server: AnyServer) -> None:
    """ATTACKS C7: Ray makes its own folder 0777. ATTACKS C4: Ray 2.60.0 makes its token's file 0644."""
    assert server.folder.stat().st_mode & 0o777 == 0o700
    assert server.logs.is_relative_to(server.folder)
    assert list(server.logs.iterdir())
    assert token_file().stat().st_mode & 0o077 == 0


# ---- faults


@pytest.mark.parametrize("killed", ["clip_text", "ingress"])
def test_a_replica_killed_under_load_loses_nothing(server: AnyServer, api: Api, killed: str) -> None:
    """Counted requests with known answers: each is answered, and right, after the client's retries."""
    clients, each = 6, 60
    texts = [f"counted number {i}" for i in range(clients)]
    expected = [vectors(api.post_json("clip_text", {"input": text})) for text in texts]
    answered = [0] * clients
    half = threading.Event()

    def ask(number: int) -> list[FloatArray]:
        found = []
        with server.client() as client:
            for _ in range(each):
                found.append(client.embed_texts([texts[number]]))
                answered[number] += 1
                if sum(answered) >= clients * each // 2:
                    half.set()
        return found

    before = replica(server, killed)
    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(ask, i) for i in range(clients)]
        assert half.wait(120)
        before.kill()
        assert sum(answered) < clients * each, "killed too late: nothing was left to ask"
        answers = [future.result() for future in asked]
    assert [len(found) for found in answers] == [each] * clients
    for found, right in zip(answers, expected, strict=True):
        np.testing.assert_allclose(np.stack(found), np.stack([right] * each), rtol=0, atol=SAME)
    assert replica(server, killed).pid != before.pid


def test_a_request_whose_replica_dies_is_told_to_come_back(server: AnyServer, api: Api) -> None:
    """Without the client's help: 503 in our own words, or the answer of the replica that came after."""
    stopped = replica(server, "clip_image")
    stopped.suspend()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(api.post, "clip_image", picture(1))
        time.sleep(1)  # it is with the replica, or waits for it
        stopped.kill()
        response = asked.result()
    if response.status_code != 200:
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
    with server.client() as client:
        Management(client).wait_ready(120)


def test_callers_who_left_cost_nothing_once_they_are_gone(server: AnyServer, api: Api) -> None:
    """The replica's CPU time for 24 callers who wait for their answers, and for as many who leave at once."""
    process = replica(server, "clip_image")
    pictures = [b64(picture(seed, (1600, 1200), "JPEG")) for seed in range(12)]
    body = json.dumps({"input": pictures}).encode()

    def ask(timeout: float) -> bool:
        headers = {**api.bearer(), "Content-Type": "application/json"}
        try:
            with httpx.Client(timeout=httpx.Timeout(120, read=timeout)) as http:
                response = http.post(f"{api.url}/predictions/clip_image", content=body, headers=headers)
        except httpx.ReadTimeout:
            return False
        return response.status_code == 200

    def cost(timeout: float) -> tuple[float, int]:
        before = process.cpu_times()
        with ThreadPoolExecutor(24) as pool:
            answered = sum(pool.map(lambda _: ask(timeout), range(24)))
        # Behind all others: when it is answered, nothing of theirs is left.
        assert api.post("clip_image", picture(1), "image/png").status_code == 200
        after = process.cpu_times()
        return after.user - before.user, answered

    (stayed, all_answered), (left, some_answered) = cost(120), cost(0.3)
    print(f"CPU of the replica: {stayed:.2f} s for those who stay, {left:.2f} s for those who leave")
    assert all_answered == 24
    assert some_answered < 12
    assert left < 0.7 * stayed


# ---- doors


def test_only_replicas_listen_beyond_loopback(server: AnyServer) -> None:
    """Ray Serve opens one gRPC port of each replica to all addresses; what it answers, the next test says."""
    beyond = {
        (process.cmdline()[0].split(":")[2], connection.laddr.port)
        for process in server.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.ip.removeprefix("::ffff:") != "127.0.0.1"
    }
    assert {kind for kind, _ in beyond} <= {"ServeReplica"}
    assert len(beyond) <= 5


def test_replicas_answer_nobody_without_rays_token(server: AnyServer) -> None:
    """HTTP/2 by hand, as far as the status: 16 is UNAUTHENTICATED."""
    process = replica(server, "clip_text")
    ports = [
        c.laddr.port
        for c in process.net_connections("inet")
        if c.status == psutil.CONN_LISTEN and c.laddr.ip == "::"
    ]
    script = f"""
import grpc
with grpc.insecure_channel("127.0.0.1:{ports[0]}") as channel:
    call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
    try:
        call(b"", timeout=20)
    except grpc.RpcError as error:
        print(error.code().name)
"""
    told = subprocess.run(
        [SCALE_PYTHON, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.strip() == "UNAUTHENTICATED"


def test_a_header_without_end_is_refused_while_others_are_answered(api: Api) -> None:
    """It was read until memory ended, without a token, by Ray Serve's proxy."""
    target = urlsplit(api.url)
    sent = 0
    with socket.create_connection((target.hostname or "", target.port or 0), timeout=20) as attack:
        attack.sendall(b"POST /predictions/clip_text HTTP/1.1\r\nHost: here\r\nX-Long: ")
        with contextlib.suppress(OSError):
            while sent < 20_000_000:
                sent += attack.send(b"a" * 10_000)
                if select.select([attack], [], [], 0)[0]:
                    break
        assert attack.recv(100).startswith(b"HTTP/1.1 400 ")
    # What the system's buffers hold comes on top of the bound.
    assert sent < 10_000_000
    assert api.post_json("clip_text", {"input": "a dog"}).status_code == 200


@pytest.mark.parametrize("given", [None, b"\xff\xfe", b"a" * 65, b"mine-1"])
def test_every_answer_has_a_request_id(api: Api, given: bytes | None) -> None:
    headers = {} if given is None else {"X-Request-Id": given}
    answer = httpx.get(f"{api.url}/openapi.json", headers=headers)
    assert answer.status_code == 200
    (found,) = answer.headers.get_list("x-request-id")
    assert (found == "mine-1") if given == b"mine-1" else uuid.UUID(found)


def test_other_addresses_of_this_machine_refuse(api: Api) -> None:
    addresses = {
        address.address
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    }
    for address in addresses:
        with socket.socket() as probe:
            probe.settimeout(5)
            assert probe.connect_ex((address, urlsplit(api.url).port or 0)) != 0, address


def test_ping(api: Api) -> None:
    assert api.inference("GET", "/ping").json() == {"status": "Healthy"}
    assert api.http.get(f"{api.url}/ping").status_code == 400


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/-/nothing", "/predictions/", "/v1"])
def test_no_other_path(api: Api, path: str) -> None:
    response = api.inference("GET", path)
    assert response.status_code in (404, 405)
    assert set(response.json()) == {"error"}


def test_the_document_is_for_everybody(api: Api) -> None:
    found = api.http.get(f"{api.url}/openapi.json")
    assert found.json() == json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))


# ---- bodies


def test_a_body_of_unknown_length_over_the_limit(api: Api) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield b"\0" * 1_000_000

    response = api.http.post(f"{api.url}/predictions/clip_image", content=endless(), headers=api.bearer())
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    "body",
    [
        b'--b\r\nContent-Disposition: form-data; name="a"; filename="1"\r\n\r\nx\r\n'
        b'--b\r\nContent-Disposition: form-data; name="b"; filename="2"\r\n\r\ncut of',
    ],
    ids=["cut off"],
)
def test_multipart_that_would_lose_a_picture(api: Api, body: bytes) -> None:
    response = api.post("clip_image", body, "multipart/form-data; boundary=b")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("content_type", "headers", "words"),
    [
        ("text/plain", {}, "send application/json"),
        ("multipart/form-data; boundary=b", {}, "send application/json"),
        ("application/json; charset=utf-16", {}, "charset is 'utf-16'"),
        ("application/json", {"Content-Encoding": "gzip"}, "Content-Encoding is 'gzip'"),
    ],
)
def test_openai_bodies_of_another_kind(
    api: Api, content_type: str, headers: dict[str, str], words: str
) -> None:
    """CASES 2, 12, 25, in OpenAI's words."""
    asked = {"Content-Type": content_type, **headers}
    body = b"--b--\r\n" if "multipart" in content_type else b"{}"
    response = api.inference("POST", "/v1/embeddings", content=body, headers=asked)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (415, "unsupported_media_type")
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]


def test_an_openai_body_that_would_cost_much(api: Api) -> None:
    """ATTACKS A2: it was parsed on the event loop of all endpoints, for a minute and more."""
    body = b"[" * 33 + b'"' + b'\\"' * 4_000_000
    response = api.inference(
        "POST", "/v1/embeddings", content=body, headers={"Content-Type": "application/json"}
    )
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")


# ---- start and end


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCALE_PYTHON, "-m", "scale.serve", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_taken_port_is_named(api: Api, archives: Path) -> None:
    port = urlsplit(api.url).port
    ended = run("--store", archives, "--port", port)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert f"port {port} is taken by another program" in ended.stderr


def test_a_missing_encoder_is_named(tmp_path: Path) -> None:
    ended = run("--store", tmp_path, "--port", free_ports(1)[0], "--key-file", tmp_path / "key_file.json")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "no image encoder for cpu here, only no encoder at all; run 'make export" in ended.stderr
    assert list(tmp_path.iterdir()) == []
