"""docs/deployment.md, as somebody would paste it: every snippet is taken from the page and tried.

nginx is Debian's, with its own nginx.conf; systemd reads the units, whose commands run here without it. What
differs from the page is where things lie: `/etc`, `/opt/clipserve` and `/var/lib/clipserve` are folders of
the test's.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx
import pytest

from reliability.proxy import (
    CALLER,
    NGINX,
    PAGE,
    Proxy,
    at,
    give_token,
    running_proxy,
    snippet,
    snippets,
    tool,
)
from serving.local import CONFIG, free_ports
from serving.server import Server, private_server, server_in
from tests.http.api import b64, picture
from tests.http.checkouts import checkout, pasted
from tests.http.conftest import READY_SECONDS

pytestmark = pytest.mark.torchserve_only("its deployment")

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze: apt-get install systemd"
)
RENEW = "?type=inference"


def test_no_snippet_is_left_untried() -> None:
    """A new one needs a test here, and its number."""
    tried = {"nginx": 2, "bash": 2, "ini": 6, "sh": 2, "yaml": 1}
    blocks = re.findall(r"^```(\w*)\n.*?^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert {language: blocks.count(language) for language in set(blocks) - {""}} == tried
    assert blocks.count("") == 1  # the picture


# ---- nginx


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The page's nginx before the tests' TorchServe, with the page's token script and one caller's key."""
    if NGINX is None:
        pytest.skip("needs nginx: apt-get install nginx-light")
    with running_proxy(server, tmp_path_factory.mktemp("nginx")) as running:
        yield running


def test_the_proxy_adds_the_token(proxy: Proxy, server: Server) -> None:
    with proxy.client() as http:
        answer = http.post("/predictions/clip_text", json={"input": ["a", "b"]})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["data"]) == 2
        files = {"a": ("a.png", picture(1))}
        answer = http.post("/predictions/clip_similarity", files=files, data={"texts": '["a", "b"]'})
        assert answer.status_code == 200, answer.text
        raw = {"Content-Type": "image/png"}
        assert http.post("/predictions/clip_image", content=picture(1), headers=raw).status_code == 200
    # TorchServe's own key is no caller's, and none is none.
    for key in (None, "wrong", server.key_file.token("inference")):
        with proxy.client(key) as http:
            answer = http.post("/predictions/clip_text", json={"input": "a"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "Application/X-WWW-Form-Urlencoded; charset=utf-8",
        "application/x-www-form-urlencoded;",
    ],
)
@pytest.mark.parametrize("body", [b"a&" * 500_000, picture(1), b"a=%zz"])
def test_forms_end_at_the_proxy(proxy: Proxy, server: Server, content_type: str, body: bytes) -> None:
    """CASES 33, ATTACKS A9: TorchServe's frontend says 500 with the picture in it, or works for a minute."""
    before = len((server.logs / "access_log.log").read_bytes())
    with proxy.client() as http:
        answer = http.post("/predictions/clip_image", content=body, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert "Content-Type: " in answer.json()["error"]["message"]
    assert len((server.logs / "access_log.log").read_bytes()) == before


def test_a_header_without_end_ends_at_the_proxy(proxy: Proxy) -> None:
    """ATTACKS A11: Ray's HTTP server takes gigabytes of one; nginx 32 kB."""
    with proxy.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: clip.example.org\r\nx: " + b"a" * 100_000)
        assert answer_of(stream)[0] == 400


def parts(count: int) -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * count + b"--x--\r\n"


@pytest.mark.parametrize("form_type", ["multipart/form-data; boundary=x", "MULTIPART/Form-Data ;boundary=x"])
def test_a_form_of_too_many_parts_ends_at_the_proxy(proxy: Proxy, server: Server, form_type: str) -> None:
    """ATTACKS A10."""
    before = len((server.logs / "access_log.log").read_bytes())
    with proxy.client() as http:
        headers = {"Content-Type": form_type}
        answer = http.post("/predictions/clip_image", content=parts(450_000), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "image_too_large")
        # Neither by the location that is for forms, from outside.
        answer = http.post("/multipart/clip_image", content=parts(1), headers=headers)
        assert answer.status_code == 404
    assert len((server.logs / "access_log.log").read_bytes()) == before


def test_bodies_beyond_the_limit_end_at_the_proxy(proxy: Proxy) -> None:
    with proxy.client() as http:
        headers = {"Content-Type": "image/png"}
        within = http.post("/predictions/clip_image", content=picture(1) + bytes(9_000_000), headers=headers)
        assert within.status_code == 200, within.text
        beyond = http.post("/predictions/clip_image", content=bytes(33 * 1024 * 1024), headers=headers)
    assert (beyond.status_code, beyond.json()["error"]["code"]) == (413, "image_too_large")


@pytest.mark.parametrize(
    "path",
    [
        "/ping",
        "/v1/models/clip_text:predict",
        "/v1/completions",
        "/predictions/v1",
        "/explanations/clip_text",
        "/predictions/clip_text/0.1.0",
        "/predictions/clip_other",
        "/api-description",
        "/models",
        "/token?type=inference",
        "/predictions/clip_text/../../ping",
        "/predictions/%2e%2e/ping",
    ],
)
def test_the_proxy_has_the_endpoints_only(proxy: Proxy, path: str) -> None:
    assert request(proxy, "POST", path)[0] == 404


def test_what_is_asked_is_the_endpoints_own_path(proxy: Proxy, server: Server) -> None:
    """ATTACKS D: nginx matched the tidied path and passed on what the caller wrote."""
    log = server.logs / "access_log.log"
    before = len(log.read_bytes())
    path = "/ping/../predictions/%63lip_text?key=secret"
    assert request(proxy, "POST", path)[0] == 200
    assert request(proxy, "GET", "/predictions/clip_text")[0] == 405
    told = log.read_bytes()[before:].decode()
    assert re.findall(r'"(.*?)"', told) == ["POST /predictions/clip_text HTTP/1.1"]
    assert "secret" not in (proxy.folder / "log" / "clipserve.log").read_text()


def head(method: str, path: str, length: int) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: clip.example.org\r\nAuthorization: Bearer {CALLER}\r\n"
        f"Content-Type: text/plain\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def answer_of(stream: BinaryIO) -> tuple[int, bytes]:
    status = int(stream.readline().split()[1])
    length = 0
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return status, stream.read(length)


def request(proxy: Proxy, method: str, path: str) -> tuple[int, bytes]:
    """Byte for byte: httpx would tidy the path up."""
    with proxy.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(head(method, path, 1) + b"a")
        return answer_of(stream)


def test_pipelined_requests_are_answered_in_order(proxy: Proxy) -> None:
    """CASES 35: TorchServe answers on one connection what is done first."""
    texts = ["a " * 500 if n % 3 == 0 else "b" * (n + 1) for n in range(24)]
    with proxy.client() as http:
        expected = [
            http.post("/predictions/clip_text", json={"input": text}).json()["usage"]["prompt_tokens"]
            for text in texts
        ]
    assert len(set(expected)) > 2
    with proxy.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(
            b"".join(head("POST", "/predictions/clip_text", len(t)) + t.encode() for t in texts)
        )
        answers = [answer_of(stream) for _ in texts]
    assert [status for status, _ in answers] == [200] * len(texts)
    assert [json.loads(body)["usage"]["prompt_tokens"] for _, body in answers] == expected


def test_a_renewed_token_reaches_the_proxy(proxy: Proxy, server: Server) -> None:
    """By the page's own lines: curl with the API key from a pipe, as a script and as pasted. CASES 66."""
    management = server.properties["management_address"]
    script = at(
        snippet("sh", "Has TorchServe make a new inference token"),
        {"/var/lib/clipserve": str(server.folder), "http://127.0.0.1:8081": management},
    )
    (line,) = [text for text in snippets("bash") if RENEW in text]
    line = at(line, {"http://127.0.0.1:8081": management})
    for renewing in (script, line):
        before = server.key_file.token("inference")
        done = pasted(renewing, server.folder)
        assert done.returncode == 0, done.stderr
        after = server.key_file.token("inference")
        assert after != before
        give_token(server, proxy)
        until(lambda: answered(proxy) == 200)
        stale = httpx.post(
            f"{server.properties['inference_address']}/predictions/clip_text",
            json={"input": "a"},
            headers={"Authorization": f"Bearer {before}"},
        )
        assert stale.json()["type"] == "InvalidKeyException"


def answered(proxy: Proxy) -> int:
    with proxy.client() as http:
        return http.post("/predictions/clip_text", json={"input": "a"}).status_code


def until(holds: Callable[[], bool]) -> None:
    """nginx takes up a new configuration in a moment of its own."""
    deadline = time.monotonic() + READY_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/predictions/v1/embeddings"])
def test_openais_path_is_the_short_one(proxy: Proxy, path: str) -> None:
    """What the proxy itself says, it says as OpenAI would."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    with proxy.client() as known, proxy.client(None) as unknown:
        answer = known.post(path, json={"input": ["a", {"image": b64(picture(1))}]})
        assert [entry["index"] for entry in answer.json()["data"]] == [0, 1]
        for refused, status in (
            (unknown.post(path, json={"input": "a"}), 401),
            (known.get(path), 405),
            (known.post(path, content=b"a&a", headers=form), 415),
            (known.post(path, json={"input": []}), 400),
        ):
            assert refused.status_code == status
            assert set(refused.json()["error"]) == {"message", "type", "param", "code"}


def test_origins_of_the_list_may_call_and_no_others(proxy: Proxy) -> None:
    path = proxy.etc / "conf.d" / "clipserve.conf"
    kept = path.read_text()
    line = '"https://app.example.org" $http_origin;'

    def allowed(origin: str) -> list[tuple[int, str | None]]:
        with proxy.client(None) as browser, proxy.client() as known:
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            asked = browser.request("OPTIONS", "/v1/embeddings", headers=headers)
            answer = known.post("/v1/embeddings", json={"input": "a"}, headers={"Origin": origin})
        name = "Access-Control-Allow-Origin"
        return [(found.status_code, found.headers.get(name)) for found in (asked, answer)]

    assert allowed("https://app.example.org") == [(204, None), (200, None)]
    try:
        path.write_text(at(kept, {f"# {line}": line}))
        subprocess.run([*proxy.command, "-s", "reload"], check=True)
        origin = "https://app.example.org"
        until(lambda: allowed(origin) == [(204, origin), (200, origin)])
        assert allowed("https://app.example.org.evil.example") == [(204, None), (200, None)]
    finally:
        path.write_text(kept)
        subprocess.run([*proxy.command, "-s", "reload"], check=True)
    until(lambda: allowed("https://app.example.org") == [(204, None), (200, None)])


# ---- systemd


@dataclass(frozen=True)
class Machine:
    """Where the page's folders are.

    Attributes:
        opt: `/opt/clipserve`.
        var: `/var/lib/clipserve`.
        units: the page's, by name.
    """

    opt: Path
    var: Path
    units: dict[str, str]

    def says(self, unit: str, key: str) -> list[str]:
        return re.findall(rf"^{key}=(.*)$", self.units[unit], re.MULTILINE)

    def run(self, unit: str, key: str) -> list[str]:
        (command,) = self.says(unit, key)
        return shlex.split(command)

    def environment(self, unit: str) -> dict[str, str]:
        """What systemd gives: little."""
        given = dict(word.split("=", 1) for line in self.says(unit, "Environment") for word in line.split())
        return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"} | given

    def folder(self, unit: str) -> Path:
        return Path((self.says(unit, "WorkingDirectory") or ["/"])[0])

    def umask(self, unit: str) -> int:
        return int((self.says(unit, "UMask") or ["0022"])[0], 8)


@pytest.fixture(scope="module")
def machine(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The page's setting up, run; the user is who runs the tests."""
    folder = tmp_path_factory.mktemp("m")
    opt = checkout(folder / "opt", archives)
    var = folder / "var"
    sbin = folder / "sbin"
    for name in ("apt-get", "useradd"):
        tool(sbin, name, f'echo {name} "$@" >> {folder / "asked"}')
    for name in ("clipserve-token", "clipserve-renew"):
        tool(sbin, name, "true")
    where = {
        "/opt/clipserve": str(opt),
        "/var/lib/clipserve": str(var),
        "/usr/local/sbin": str(sbin),
    }

    def here(text: str) -> str:
        for name, place in where.items():
            text = text.replace(name, place)
        return text

    setting_up = snippet("bash", "useradd --system")
    setting_up = at(here(setting_up), {"-o clipserve -g clipserve": f"-o {os.getuid()} -g {os.getgid()}"})
    done = pasted(setting_up, folder, {"PATH": f"{sbin}:/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    assert var.stat().st_mode & 0o777 == 0o700
    units = {}
    for text in snippets("ini"):
        found = re.match(r"# /etc/systemd/system/(\S+)\n", text)
        assert found is not None, text[:60]
        units[found[1]] = here(text)
    (folder / "units").mkdir()
    for name, text in units.items():
        (folder / "units" / name).write_text(text)
    return Machine(opt, var, units)


@needs_systemd
def test_systemd_reads_the_units(machine: Machine) -> None:
    """ATTACKS D. An unknown key, a bad value, a command that is not there: each is a line."""
    folder = machine.opt.parent / "units"
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(folder / name) for name in machine.units)],
        env={"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{folder}:", "SYSTEMD_LOG_LEVEL": "warning"},
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in said.stderr.splitlines() if "clipserve" in line]
    assert ours == []
    assert said.returncode == 0, said.stderr
    assert set(machine.units) == {
        *(f"clipserve{name}.service" for name in ("", "-probe", "-token", "-renew")),
        *("clipserve-token.path", "clipserve-renew.timer"),
    }


@needs_systemd
@pytest.mark.parametrize("unit", ["clipserve.service", "clipserve-probe.service"])
def test_systemd_rates_them(machine: Machine, unit: str) -> None:
    """Below 2.0 of 10 is its `OK`."""
    path = machine.opt.parent / "units" / unit
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(path)],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout + rated.stderr
    for key in ("RestrictAddressFamilies", "SystemCallFilter", "TasksMax"):
        assert machine.says(unit, key), key


def test_the_units_commands(machine: Machine) -> None:
    """ATTACKS D: each in its own folder and environment; the probe found neither itself nor the key file."""
    unit, probe = "clipserve.service", "clipserve-probe.service"
    server = server_in(machine.var)

    def systemd(unit: str, key: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            machine.run(unit, key),
            cwd=machine.folder(unit),
            env=machine.environment(unit),
            umask=machine.umask(unit),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )

    assert systemd(unit, "ExecStart").returncode == 0
    try:
        (pid_file,) = machine.says(unit, "PIDFile")
        assert int(Path(pid_file).read_text()) == server.running_pid()
        server.wait_ready(READY_SECONDS)
        # ATTACKS C2: as under `make serve`.
        assert "\nUmask:\t0077\n" in Path(f"/proc/{server.running_pid()}/status").read_text()
        (port,) = free_ports(1)
        with subprocess.Popen(
            [*machine.run(probe, "ExecStart"), "--port", str(port)],
            cwd=machine.folder(probe),
            env=machine.environment(probe),
            stdout=subprocess.PIPE,
            text=True,
        ) as probing:
            try:
                assert probing.stdout is not None
                assert str(port) in probing.stdout.readline()
                # The one snippet in YAML: Kubernetes' probes ask the same two.
                asked = re.findall(r"path: (/\w+)", *snippets("yaml"))
                assert asked == ["/ready", "/live"]
                for path in asked:
                    answer = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=60)
                    assert (answer.status_code, answer.json()) == (200, {"ok": True})
            finally:
                probing.terminate()
        assert systemd(unit, "ExecStop").returncode == 0
        assert server.running_pid() is None
        assert not (machine.var / "key_file.json").exists()
    finally:
        server.stop()


def test_all_that_a_server_reads_is_copied(machine: Machine) -> None:
    """The page's `install` brings what config.properties names."""
    named = re.findall(
        r"[\w.-]+\.(?:xml|yaml)\b", re.sub(r"^#.*$", "", CONFIG.read_text(), flags=re.MULTILINE)
    )
    assert named
    for name in [*named, "config.properties"]:
        assert (machine.var / name).is_file(), name


def test_a_private_server_is_not_the_units(archives: Path, tmp_path: Path, machine: Machine) -> None:
    assert private_server(archives, tmp_path).running_pid() is None
    assert server_in(machine.var).running_pid() is None
