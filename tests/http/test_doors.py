"""Every door that should be shut, tried from outside."""

from __future__ import annotations

import json
import re
import shutil
import socket
import struct
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from clipserve.endpoint_status import READY, EndpointStatus
from clipserve.endpoints import ENDPOINTS
from serving.local import CONFIG, read_properties
from serving.server import Server
from tests.http.api import JSON, AnyServer, Api, picture

SECRET = "a payload that must not reach a log"


OWN_PATH = pytest.mark.torchserve_only("a path of TorchServe's own")
OWN_KEY = pytest.mark.torchserve_only("a key of TorchServe's own")


def tokens(server: AnyServer) -> dict[str, str]:
    keys = json.loads((server.folder / "key_file.json").read_text(encoding="utf-8"))
    return {kind: server.key_file.token(kind) for kind in keys}


# ---- tokens


@pytest.mark.parametrize(
    "kind", [None, "management", pytest.param("API", marks=OWN_KEY), "wrong", "empty", "basic"]
)
@pytest.mark.parametrize(
    "path",
    [
        "/predictions/clip_text",
        pytest.param("/explanations/clip_text", marks=OWN_PATH),
        pytest.param("/v1/models/clip_text:predict", marks=OWN_PATH),
    ],
)
def test_inference_needs_its_own_token(api: Api, server: AnyServer, kind: str | None, path: str) -> None:
    known = {
        **{name: f"Bearer {token}" for name, token in tokens(server).items()},
        "wrong": "Bearer AAAAAAAA",
        "empty": "Bearer",
        "basic": "Basic " + tokens(server)["inference"],
    }
    headers = {} if kind is None else {"Authorization": known[kind]}
    response = api.http.post(f"{api.url}{path}", json={"input": "a"}, headers=headers)
    assert response.status_code == 400
    assert response.json()["type"] == "InvalidKeyException"


def test_a_token_is_only_read_from_its_header(api: Api, server: AnyServer) -> None:
    token = tokens(server)["inference"]
    for parameters in ({"token": token}, {"key": token}, {"Authorization": f"Bearer {token}"}):
        response = api.http.post(f"{api.url}/predictions/clip_text", params=parameters, json={"input": "a"})
        assert response.status_code == 400


@pytest.mark.parametrize("kind", [None, "inference", pytest.param("API", marks=OWN_KEY)])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/models/clip_text"),
        *(
            pytest.param(method, path, marks=OWN_PATH)
            for method, path in (
                ("GET", "/models"),
                ("PUT", "/models/clip_text?min_worker=3"),
                ("DELETE", "/models/clip_text"),
                ("POST", "/models?url=clip_text.mar"),
                ("PUT", "/models/clip_text/0.1.0/set-default"),
            )
        ),
    ],
)
def test_management_needs_its_own_token(
    api: Api, server: AnyServer, kind: str | None, method: str, path: str
) -> None:
    headers = {} if kind is None else {"Authorization": f"Bearer {tokens(server)[kind]}"}
    response = api.http.request(method, f"{api.management}{path}", headers=headers)
    assert response.status_code == 400, response.text
    assert response.json()["type"] == "InvalidKeyException"


@pytest.mark.torchserve_only("its tokens expire")
@pytest.mark.parametrize("kind", [None, "inference", "management"])
def test_renewing_tokens_needs_the_api_key(api: Api, server: Server, kind: str | None) -> None:
    before = tokens(server)
    headers = {} if kind is None else {"Authorization": f"Bearer {before[kind]}"}
    response = api.http.get(f"{api.management}/token", params={"type": "inference"}, headers=headers)
    assert response.status_code == 400
    assert tokens(server) == before


def test_the_key_file_is_for_its_owner_only(server: AnyServer) -> None:
    assert (server.folder / "key_file.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("path", ["/predictions/clip_text", "/predictions/v1/embeddings", "/v1/embeddings"])
@pytest.mark.parametrize("method", ["OPTIONS", "POST"])
def test_no_other_origin_is_let_in(api: Api, method: str, path: str) -> None:
    """CORS is closed: a browser keeps what a page of another origin has asked for to itself."""
    headers = {"Origin": "https://app.example.org", "Access-Control-Request-Method": "POST"}
    response = api.inference(method, path, json={"input": "a"}, headers=headers)
    assert not [name for name in response.headers if name.startswith("access-control-")]


# ---- models


@pytest.fixture(scope="module")
def outside(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good archive, outside of the model store."""
    return Path(shutil.copy(archives / "clip_text.mar", tmp_path_factory.mktemp("outside") / "other.mar"))


@pytest.mark.torchserve_only("its management API")
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/evil.mar",
        "https://127.0.0.1:9/evil.mar",
        "s3://bucket/evil.mar",
        "file://{outside}",
        "{outside}",
        "../{relative}",
        "..%2F{relative}",
        "file:///{store}/../{relative}",
        "clip_text.mar",
    ],
)
def test_no_model_is_registered_at_run_time(
    api: Api, server: Server, archives: Path, outside: Path, url: str
) -> None:
    relative = f"{outside.parent.name}/{outside.name}"
    asked = url.format(outside=outside, relative=relative, store=archives)
    response = api.manage("POST", "/models", params={"url": asked, "model_name": "evil"})
    assert 400 <= response.status_code < 500, response.text
    listed = api.manage("GET", "/models").json()["models"]
    assert {model["modelName"] for model in listed} == set(ENDPOINTS)
    assert not (archives / "evil.mar").exists()
    assert not (archives / "other.mar").exists()


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/models/clip_text"), ("POST", "/workflows?url=x.war"), ("DELETE", "/workflows/x")],
)
def test_models_cannot_be_removed_nor_workflows_added(api: Api, method: str, path: str) -> None:
    assert 400 <= api.manage(method, path).status_code < 500
    status = EndpointStatus.from_json(api.manage("GET", "/models/clip_text").json(), "clip_text")
    assert status.workers[0].status == READY


# ---- addresses and paths


@pytest.mark.torchserve_only("its doors")
def test_only_loopback_listens(server: Server) -> None:
    listening = {
        connection.laddr
        for process in server.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    # Java names IPv4 loopback in its IPv6 form.
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    properties = server.properties
    expected = {
        urlsplit(properties[f"{name}_address"]).port for name in ("inference", "management", "metrics")
    }
    expected |= {int(properties[f"grpc_{name}_port"]) for name in ("inference", "management")}
    assert expected <= {address.port for address in listening}


@pytest.mark.torchserve_only("its doors")
def test_workers_listen_on_no_port(server: Server) -> None:
    _, *workers = server.processes()
    assert workers
    assert [c for worker in workers for c in worker.net_connections("inet")] == []


@pytest.mark.torchserve_only("its doors")
def test_other_addresses_of_this_machine_refuse(server: Server) -> None:
    addresses = {
        address.address
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    }
    properties = server.properties
    ports = [urlsplit(properties[f"{name}_address"]).port for name in ("inference", "management", "metrics")]
    ports += [int(properties[f"grpc_{name}_port"]) for name in ("inference", "management")]
    for address in sorted(addresses):
        for port in ports:
            with socket.socket() as probe:
                probe.settimeout(5)
                assert probe.connect_ex((address, port or 0)) != 0, (address, port)


@pytest.mark.torchserve_only("its gRPC")
@pytest.mark.parametrize(("kind", "answered"), [(None, False), ("management", False), ("inference", True)])
def test_grpc_needs_a_token_too(server: Server, kind: str | None, answered: bool) -> None:
    """HTTP/2 by hand: without a token no message comes back (a DATA frame), only an error in trailers."""

    def field(name: str, value: str) -> bytes:  # HPACK: literal, never indexed, not compressed
        return b"\x10" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return (
            struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
        )

    service = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
    headers = field(":method", "POST") + field(":scheme", "http") + field(":authority", "127.0.0.1")
    headers += field(":path", f"/{service}/Predictions")
    headers += field("content-type", "application/grpc") + field("te", "trailers")
    if kind is not None:
        headers += field("authorization", f"Bearer {tokens(server)[kind]}")
    message = b"\x0a\x09clip_text\x1a\x0c\x0a\x04data\x12\x04text"
    kinds = set()
    port = int(server.properties["grpc_inference_port"])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(4, 0, 0, b"")
            + frame(1, 4, 1, headers)
            + frame(0, 1, 1, b"\0" + struct.pack(">I", len(message)) + message)
        )
        stream = connection.makefile("rb")
        while True:
            head = stream.read(9)
            length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            stream.read(length)
            kinds.add(kind)
            if kind == 1 and flags & 1:  # HEADERS that end the stream
                break
    assert (0 in kinds) == answered


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/predictions/../../etc/passwd",
        "/predictions/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/predictions/clip_text/..%2f..%2fkey_file.json",
        "/key_file.json",
        "/logs/ts_log.log",
        "/models",
        "/metrics",
        "/token?type=inference",
    ],
)
def test_the_inference_address_gives_predictions_only(api: Api, path: str) -> None:
    # Not with httpx, which tidies a path up before it sends it.
    connection = HTTPConnection("127.0.0.1", urlsplit(api.url).port, timeout=10)
    connection.request("GET", path, headers=api.bearer())
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status in (400, 404, 405), body[:200]
    assert b"root:" not in body
    assert b'"key"' not in body


# ---- logs


def test_keys_and_payloads_never_reach_a_log(api: Api, server: AnyServer) -> None:
    bodies = [
        ("clip_text", JSON, json.dumps({"input": SECRET})),
        ("clip_text", JSON, json.dumps({"input": [SECRET, 5]})),
        ("clip_text", JSON, json.dumps({SECRET: 1})),
        ("clip_text", JSON, '{"input": "' + SECRET),
        ("clip_text", "text/plain", SECRET),
        ("clip_text", SECRET, SECRET),
        ("clip_image", JSON, json.dumps({"input": SECRET})),
        ("clip_image", None, SECRET),
        ("clip_similarity", JSON, json.dumps({"images": [SECRET], "labels": [SECRET], "template": SECRET})),
    ]
    for endpoint, content_type, body in bodies:
        api.post(endpoint, body, content_type)
        api.http.post(
            f"{api.url}/predictions/{endpoint}", content=body, headers={"Authorization": "Bearer x"}
        )
    api.post_files("clip_similarity", {"a": ("a.png", picture(1))}, {"texts": json.dumps([SECRET])})
    # CASES 33: what TorchServe's own frontend cannot read, it would write down whole.
    for body in (f"{SECRET}%zz".encode(), SECRET.encode() + picture(1), f"a={SECRET}%".encode()):
        api.post("clip_image", body, "application/x-www-form-urlencoded")
    head = 'Content-Disposition: form-data; name="a"\r\n'
    for part in (
        f"{SECRET}: x\r\n\r\n{SECRET}",
        f"Content-Disposition: form-data\r\n\r\n{SECRET}",
        f"{head}Content-Type: text/plain; charset={SECRET}\r\n\r\n{SECRET}",
        f"{head}Content-Transfer-Encoding: {SECRET}\r\n\r\n{SECRET}",
    ):
        api.post("clip_image", f"--x\r\n{part}\r\n--x--\r\n", "multipart/form-data; boundary=x")
    # Somebody who takes a token or a text to belong into the URL.
    for token in tokens(server).values():
        api.post("clip_text", "a", "text/plain", params={"token": token, "input": SECRET})
    if "API" in tokens(server):
        server.key_file.renew("inference", tokens(server)["inference"])
    api.post("clip_text", "once more", "text/plain")
    logs = [path for path in server.logs.rglob("*.*") if path.is_file()]
    logged = "".join(path.read_text(encoding="utf-8", errors="replace") for path in logs)
    assert "clip_text" in logged
    assert SECRET not in logged
    for token in tokens(server).values():
        assert token not in logged


@pytest.mark.torchserve_only("its logs")
def test_a_request_is_one_line_of_the_access_log(api: Api, server: Server) -> None:
    """CASES 71: 17 lines and 2.6 kB of ts_log.log a request, every metric twice, as TorchServe comes."""

    def lines() -> dict[str, int]:
        return {path.name: len(path.read_bytes().splitlines()) for path in server.logs.iterdir()}

    before = lines()
    for number in range(10):
        assert api.post("clip_text", f"text {number}", "text/plain").status_code == 200
    # Written before the next request is answered, but the last one's may be on its way.
    api.http.get(f"{api.url}/ping", headers=api.bearer())
    grown = {name: count - before.get(name, 0) for name, count in lines().items()}
    assert grown.pop("access_log.log") in (10, 11)
    # The system's metrics, once a minute, are none of a request's.
    assert set(grown.values()) == {0}, grown


@pytest.mark.torchserve_only("its files")
def test_what_it_writes_is_for_its_owner_only(server: Server) -> None:
    """ATTACKS C2: key_file.json was 0644 until TorchServe changed it. ATTACKS C3: unpacked archives were."""
    java, *workers = server.processes()
    for process in (java, *workers):
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "\nUmask:\t0077\n" in status
    assert server.temporary.stat().st_mode & 0o777 == 0o700
    assert list(server.temporary.rglob("clipserve/worker.py"))
    for path in server.logs.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.torchserve_only("its archives, each of which it unpacks by itself")
def test_an_encoder_is_one_file_for_all_endpoints(server: Server) -> None:
    """What workers map of it is in memory once: README's door costs no second table of tokens."""
    files: dict[str, list[int]] = {}
    for path in server.temporary.rglob("*.pt"):
        files.setdefault(path.name, []).append(path.stat().st_ino)
    # The image endpoint's, the text endpoint's, and those of the two that have both.
    assert sorted(map(len, files.values())) == [3, 3]
    assert all(len(set(inodes)) == 1 for inodes in files.values())


@pytest.mark.torchserve_only("its Java")
def test_javas_memory_is_bounded(server: Server) -> None:
    """ATTACKS A9, A10: a form of millions of fields took a quarter of the machine's memory, and kept it."""
    frontend = server.processes()[0]
    bounds = {"-Xmx2g", "-XX:MaxDirectMemorySize=1g", "-XX:+UseSerialGC", "-XX:MaxHeapFreeRatio=30"}
    assert {*bounds, "-Dio.netty.allocator.type=unpooled"} <= set(frontend.cmdline())
    malloc = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "262144"}
    assert malloc.items() <= frontend.environ().items()
    # What Java made of it: one survivor space of the serial collector is not counted.
    found = re.search(r"^Max heap size: (\d+) M$", (server.logs / "ts_log.log").read_text(), re.MULTILINE)
    assert found is not None
    assert 1900 <= int(found[1]) <= 2048


@pytest.mark.torchserve_only("its properties")
def test_the_project_is_configured_as_this_server_is(server: Server) -> None:
    """The tests' server differs from the project's in its ports and folders only."""
    project, ours = read_properties(CONFIG), server.properties
    assert set(project) == set(ours)
    differing = {name for name in project if project[name] != ours[name]}
    assert differing <= {
        *(f"{name}_address" for name in ("inference", "management", "metrics")),
        *(f"grpc_{name}_port" for name in ("inference", "management")),
    }
    for name in ("inference_address", "management_address", "metrics_address"):
        assert project[name].startswith("http://127.0.0.1:")
