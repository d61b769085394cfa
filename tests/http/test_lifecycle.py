"""Starting, stopping, and what is left behind: nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from clipserve.client import connection
from clipserve.encoder_spec import read_spec
from clipserve.errors import ClipServeError, ServerError
from clipserve.tuned import Tuned, write_tuned
from export_scripts.packages.archive import build_archives
from serving import local
from serving.__main__ import main
from serving.local import ROOT, private_folder, telling
from serving.server import Server, private_server, server_in
from tests.http.checkouts import bare_environment, checkout, pasted
from tests.http.conftest import READY_SECONDS

pytestmark = pytest.mark.torchserve_only(
    "how TorchServe is started and stopped; Ray Serve: test_ray_serve.py"
)

TEXT_ONLY = {"load_models": "clip_text=clip_text.mar"}


def workers_below(folder: Path) -> list[psutil.Process]:
    """The workers whose sockets lie below a folder, of whichever server: others are on this machine too."""
    return [
        process
        for process in psutil.process_iter()
        if "model_service_worker" in (command := " ".join(cmdline(process))) and str(folder) in command
    ]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def session(leader: int) -> list[psutil.Process]:
    """The processes of a session: TorchServe's Java is nobody's child once its launcher has ended."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(process.pid) == leader:
                members.append(process)
    return members


def test_starting_twice_says_so(server: Server) -> None:
    with pytest.raises(
        ServerError, match=rf"running already \(process {server.running_pid()}\); 'make stop'"
    ):
        server.start()
    server.wait_ready(READY_SECONDS)


def test_a_taken_port_is_named(server: Server, archives: Path, tmp_path: Path) -> None:
    taken = urlsplit(server.properties["inference_address"]).port
    other = private_server(archives, tmp_path, overrides={"inference_address": f"http://127.0.0.1:{taken}"})
    with pytest.raises(ServerError, match=f"port {taken} is taken by another program"):
        other.start()
    assert other.running_pid() is None


def test_a_server_belongs_to_its_folder(archives: Path, tmp_path: Path) -> None:
    """CASES 51: `make stop` in one checkout ended the server of another."""
    ours = checkout(tmp_path / "ours", archives)
    theirs = checkout(tmp_path / "theirs", archives)
    shutil.copyfile(theirs / "config.properties", ours / "config.properties")  # the same ports
    server = server_in(theirs)
    server.start()
    try:
        server.wait_ready(READY_SECONDS)
        pid = server.running_pid()
        # ATTACKS C3: code is unpacked where nobody else may write.
        assert server.temporary.is_relative_to(theirs)
        whose = f"the TorchServe of {theirs}, process {pid}"
        started = pasted(".venv/bin/python -m serving serve", ours)
        assert started.returncode == 1
        assert "is taken by another program; stop that, or change config.properties" in started.stderr
        assert whose in started.stderr
        stopped = pasted(".venv/bin/python -m serving stop", ours)
        assert stopped.returncode == 0
        assert f"TorchServe is not running in {ours}" in stopped.stdout
        assert f"left alone: the one of {theirs} (process {pid})" in stopped.stdout
        assert server.running_pid() == pid
    finally:
        server.stop()
    assert server.running_pid() is None


def test_the_readmes_own_line_and_serve_after_it(archives: Path, tmp_path: Path) -> None:
    """CASES 57: pasted where PATH has no Java and no TorchServe. CASES 66: `serve` shows all of it again."""
    folder = checkout(tmp_path / "checkout", archives)
    bare = bare_environment(tmp_path / "bare")
    (line,) = re.findall(
        r"^.*torchserve --start .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    server = server_in(folder)
    try:
        started = pasted(line, folder, bare)
        assert started.returncode == 0, started.stderr
        pid = server.running_pid()
        assert pid is not None
        assert server.processes()[0].environ()["TEMP"] == str(server.temporary)
        assert "\nUmask:\t0077\n" in Path(f"/proc/{pid}/status").read_text()
        shown = pasted(".venv/bin/python -m serving serve", folder, bare)
        assert shown.returncode == 0, shown.stderr
        assert f"TorchServe is running already (process {pid})" in shown.stdout
        assert f"ready at {server.properties['inference_address']}\n" in shown.stdout
        assert server.key_file.token("inference") in shown.stdout
        assert str(folder / "key_file.json") in shown.stdout
        lines = [line for line in shown.stdout.splitlines() if line.startswith("curl ")]
        assert len(lines) == 3
        for line in lines:
            # ATTACKS C1, for curl: no proxy of the environment's gets the token.
            told = pasted(line, ROOT, {"PATH": os.environ["PATH"], "http_proxy": "http://127.0.0.1:9"})
            assert json.loads(told.stdout)["object"] in ("list", "similarity"), told
        assert server.running_pid() == pid
        stopped = pasted(".venv/bin/python -m serving stop", folder, bare)
        assert stopped.stdout.splitlines()[-1] == "stopped"
        assert server.running_pid() is None
        assert not (folder / "key_file.json").exists()
    finally:
        server.stop()


def test_waiting_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """CASES 67: a line at once, and more for as long as it takes."""
    monkeypatch.setattr(local, "TELL_SECONDS", 0.01)
    said: list[str] = []
    with telling("starting"):
        while len(said) < 3:
            said += capsys.readouterr().out.splitlines()
    assert said[0] == "starting"
    assert all(re.fullmatch(r"starting: \d+ s", line) for line in said[1:])


def test_a_private_folder_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ATTACKS C3."""
    (tmp_path / "open").mkdir(mode=0o777)
    assert private_folder(tmp_path / "open").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(ServerError, match="link is another user's, or a link"):
        private_folder(tmp_path / "link")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ServerError, match="open is another user's"):
        private_folder(tmp_path / "open")


def test_a_path_too_long_for_sockets(archives: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"is too long a path for a socket \(107 bytes\); move"):
        private_server(archives, tmp_path / ("long" * 25), overrides=TEXT_ONLY).start()


@pytest.mark.parametrize(("port", "said"), [(80808, "port 80808 is none"), (None, "is taken by another")])
def test_the_probe_names_its_port(port: int | None, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """CASES 61."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        taken_port = taken.getsockname()[1]
        assert main(["probe", "--port", str(port or taken_port)]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert f"port {port or taken_port} " in told
    assert "--port" in told


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with pytest.raises(ServerError, match=r"clip_image\.mar is missing; run 'make export'"):
        private_server(tmp_path / "store", tmp_path / "server").start()


def test_stopping_what_is_not_running(archives: Path, tmp_path: Path) -> None:
    assert private_server(archives, tmp_path).stop() is False


def test_requests_in_flight_at_a_stop_are_answered_or_told(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`stop` under load: each request has its right answer or a clear failure, and no process stays."""
    monkeypatch.setattr(connection, "RETRIES_SECONDS", 2.0)
    server = private_server(archives, tmp_path, overrides=TEXT_ONLY)
    server.start()
    server.wait_ready(READY_SECONDS)
    family = server.processes()
    with server.client() as client:
        expected = client.embed_texts(["a dog"])
    answers: list[bool] = []
    refusals: list[str] = []
    stopping = threading.Event()

    def ask() -> None:
        with server.client() as client:
            while not stopping.is_set() or len(answers) < 50:
                try:
                    found = client.embed_texts(["a dog"])
                except ClipServeError as error:
                    refusals.append(str(error))
                    return
                answers.append(bool(abs(found - expected).max() < 1e-5))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(answers) < 50:
        time.sleep(0.01)
    assert server.stop() is True
    stopping.set()
    for thread in threads:
        thread.join()
    assert all(answers)
    # Nothing but that the server is gone: no half answer, no traceback.
    assert len(refusals) == 4
    assert all("cannot be reached" in r or "token" in r or "status 5" in r for r in refusals), refusals
    assert not [p for p in family if p.is_running()]
    assert server.running_pid() is None
    assert not (tmp_path / "key_file.json").exists()


def test_workers_do_not_outlive_a_killed_server(archives: Path, tmp_path: Path) -> None:
    """Nor does what a kill leaves behind stop the next start."""
    server = private_server(archives, tmp_path, overrides=TEXT_ONLY)
    for number in (signal.SIGTERM, signal.SIGKILL):
        server.start()
        server.wait_ready(READY_SECONDS)
        java, *workers = server.processes()
        assert workers
        java.send_signal(number)
        _, alive = psutil.wait_procs([java, *workers], timeout=60)
        assert alive == []
        with pytest.raises(ServerError, match="has ended"):
            server.wait_ready(5)
    assert server.stop() is False


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Not pytest's folder: workers' sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="c-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_serve_stops_the_server(
    archives: Path, short_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C (to the whole group, as a terminal sends it) or a kill while `demo` starts or runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "serving", "demo", "--store", str(archives)],
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "TMPDIR": str(short_path),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as command:
        assert command.stdout is not None
        assert "starting" in command.stdout.readline()
        while not any("ModelServer" in " ".join(cmdline(p)) for p in session(command.pid)):
            assert command.poll() is None
            time.sleep(0.05)
        family = session(command.pid)
        if number == signal.SIGINT:
            os.killpg(command.pid, number)
        else:
            command.send_signal(number)
        assert command.wait(120) != 0
        assert command.stderr is not None
        assert "Traceback" not in command.stderr.read()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    assert workers_below(short_path) == []
    assert list(short_path.glob("clipserve-*")) == []


def test_more_threads_than_cores_are_warned_of(store: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(store, tmp_path / "store"))
    spec = read_spec(own / "clip-text-cpu-fp32.pt")
    threads = len(os.sched_getaffinity(0)) + 1
    write_tuned(own, spec.space_id, {"clip_text": Tuned((spec.file_name,), 1, threads, 8)}, {})
    build_archives(own, None, None)
    with private_server(own, tmp_path / "server", overrides=TEXT_ONLY).started(READY_SECONDS) as server:
        [warning] = server.warnings()
    assert warning.startswith(f"clip_text: 1 workers x {threads} threads are more than the {threads - 1}")


def test_an_archive_that_was_cut_off(archives: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    whole = (archives / "clip_text.mar").read_bytes()
    (store / "clip_text.mar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ServerError, match=r"clip_text\.mar is no archive"):
        private_server(store, tmp_path / "server", overrides=TEXT_ONLY).start()


def test_free_ports_are_free(server: Server) -> None:
    port = urlsplit(server.properties["metrics_address"]).port
    with socket.create_connection(("127.0.0.1", port or 0), timeout=5):
        pass
