"""What can go wrong with a deployment, each done to it on purpose."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from clipserve.client import Management
from clipserve.errors import ServerError
from reliability.questions import Question
from serving.server import Server, private_server

READY_SECONDS = 240.0
ROOT_ID = 0


@dataclass(frozen=True)
class Harm:
    """What a fault did.

    Attributes:
        moment: `time.monotonic()` at which it had taken effect; what is asked later has to wait for recovery.
        remark: for the scorecard.
    """

    moment: float
    remark: str = ""


@dataclass(frozen=True)
class Fault:
    """One way to hurt a deployment.

    Attributes:
        title: as the scorecard prints it.
        run: does it; raises `ServerError` where the deployment misbehaves.
        refuses: callers may be refused meanwhile, for the server itself goes away, or a worker that is stuck
            takes `responseTimeout` to fail them, and what took so long the client does not repeat.
        back_within: seconds in which every endpoint must answer again; None where it is only reported.
    """

    title: str
    run: Callable[[Server, Sequence[Question]], Harm]
    refuses: bool = False
    back_within: float | None = None


def kill_worker(server: Server, questions: Sequence[Question]) -> Harm:
    """SIGKILL to a worker, as the kernel does when memory runs out."""
    process = _worker(server)
    process.kill()
    process.wait(30)
    return Harm(time.monotonic())


def stop_worker(server: Server, questions: Sequence[Question]) -> Harm:
    """SIGSTOP to a worker: it lives, and answers no more. TorchServe replaces it after `responseTimeout`."""
    process = _worker(server)
    process.suspend()
    started = time.monotonic()
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() - started > READY_SECONDS:
            process.kill()
            raise ServerError(f"worker {process.pid} was stuck for {READY_SECONDS:g} s and not replaced")
        time.sleep(0.1)
    return Harm(started, f"replaced after {time.monotonic() - started:.0f} s")


def fill_queue(server: Server, questions: Sequence[Question]) -> Harm:
    """More requests at once than the queue holds: each is answered, or told to come back (503)."""
    question = questions[0]
    count = 2 * int(server.properties["job_queue_size"])
    token = server.key_file.token("inference")
    body = _raw_request(server, question, token)
    statuses = []
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(_connect(server)) for _ in range(count)]
        for connection in connections:
            connection.sendall(body)
        for connection in connections:
            connection.settimeout(120)
            with contextlib.suppress(OSError):
                statuses.append(connection.recv(12)[9:12].decode())
    answered, told = statuses.count("200"), statuses.count("503")
    if answered + told != count:
        raise ServerError(
            f"{count} requests at once: {answered} answered, {told} told 503, the others neither"
        )
    return Harm(started, f"{count} at once: {answered} answered, {told} told 503")


def slow_loris(server: Server, questions: Sequence[Question]) -> Harm:
    """200 callers that send their headers a byte at a time, and half of them close one direction."""
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(_connect(server)) for _ in range(200)]
        request = b"POST /predictions/clip_text HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc"
        for connection in connections[::2]:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        for position in range(25):
            for connection in connections[1::2]:
                with contextlib.suppress(OSError):
                    connection.sendall(request[position : position + 1])
            time.sleep(0.2)
    return Harm(started, f"200 connections held for {time.monotonic() - started:.0f} s")


def leave_early(server: Server, questions: Sequence[Question]) -> Harm:
    """200 callers that send a whole request and hang up, so that a batch has answers nobody waits for."""
    token = server.key_file.token("inference")
    started = time.monotonic()
    for number in range(200):
        with _connect(server) as connection:
            if number % 2:
                # Zero linger: the connection is reset, not closed.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.sendall(_raw_request(server, questions[number % len(questions)], token))
            time.sleep(0.005 * (number % 4))
    return Harm(started, "200 callers left")


def oversize(server: Server, questions: Sequence[Question]) -> Harm:
    """Bodies over `max_request_size`, four at a time; some say so in their headers, some stream on and on."""
    limit = int(server.properties["max_request_size"])
    url = f"{server.properties['inference_address']}/predictions/clip_image"
    headers = {"Authorization": f"Bearer {server.key_file.token('inference')}"}

    def endless() -> Iterator[bytes]:
        for _ in range(2 * limit // 1_000_000):
            yield b"\0" * 1_000_000

    def send(number: int) -> str:
        content = endless() if number % 2 else b"\0" * (limit + 1)
        try:
            return str(
                httpx.post(url, content=content, headers=headers, timeout=120, trust_env=False).status_code
            )
        except httpx.TransportError:
            # The server answers 413 and hangs up while the body is still on its way.
            return "hung up"

    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(send, range(8)))
    if set(answers) - {"413", "hung up"}:
        raise ServerError(f"bodies over {limit} bytes were answered {answers}, should be 413")
    remark = f"8 bodies: {answers.count('413')} told 413, {answers.count('hung up')} cut off"
    return Harm(started, remark)


def disk_full(server: Server, questions: Sequence[Question]) -> Harm:
    """A second server of the same archives on a disk too small to unpack them: it must say so, not wait."""
    started = time.monotonic()
    if os.geteuid() != ROOT_ID:
        return Harm(started, "skipped: mounting a small tmpfs needs root")
    with tempfile.TemporaryDirectory(prefix="clipserve-chaos-") as folder:
        small = Path(folder) / "tmp"
        small.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)]  # any archive is larger
        if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
            return Harm(started, "skipped: this machine allows no tmpfs mount")
        try:
            other = private_server(server.store, Path(folder))
            other.start()
            try:
                other.wait_ready(60)
            except ServerError as error:
                reason = str(error).partition("\n")[0][:90]
                return Harm(started, f"said after {time.monotonic() - started:.0f} s: {reason}")
            finally:
                other.stop()
            raise ServerError("it called itself ready on a full disk")
        finally:
            subprocess.run(["umount", "-l", str(small)], check=False, capture_output=True)


def restart(server: Server, questions: Sequence[Question]) -> Harm:
    """`make stop` and `make serve` while callers call."""
    server.stop()
    started = time.monotonic()
    server.start()
    server.wait_ready(READY_SECONDS)
    return Harm(started, f"ready again {time.monotonic() - started:.0f} s after its start")


def terminate(server: Server, questions: Sequence[Question]) -> Harm:
    """SIGTERM to the server, as systemd sends it, and a start by whoever watches it."""
    family = server.processes()
    os.kill(family[0].pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=60)
    if alive:
        raise ServerError(f"processes {[p.pid for p in alive]} outlived SIGTERM by 60 s")
    gone = time.monotonic()
    server.start()
    server.wait_ready(READY_SECONDS)
    return Harm(gone, "no process left behind")


FAULTS = {
    "kill": Fault("kill -9 a worker", kill_worker, back_within=10.0),
    "stop": Fault("stop (SIGSTOP) a worker", stop_worker, refuses=True),
    "queue": Fault("fill the queue", fill_queue),
    "loris": Fault("slow and half-closed callers", slow_loris),
    "leave": Fault("callers leave mid-batch", leave_early),
    "oversize": Fault("oversize bodies", oversize),
    "disk": Fault("disk full while unpacking", disk_full),
    "restart": Fault("restart under load", restart, refuses=True),
    "term": Fault("SIGTERM under load", terminate, refuses=True),
}


def _worker(server: Server) -> psutil.Process:
    """A worker of the first endpoint; the management address knows which process that is."""
    with server.client() as client:
        return psutil.Process(Management(client).workers(server.endpoints[0])[0].pid)


def _connect(server: Server) -> socket.socket:
    address = urlsplit(server.properties["inference_address"])
    return socket.create_connection((str(address.hostname), address.port or 80), timeout=30)


def _raw_request(server: Server, question: Question, token: str) -> bytes:
    head = (
        f"POST /predictions/{question.endpoint} HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: {question.content_type}\r\n"
        f"Content-Length: {len(question.body)}\r\n\r\n"
    )
    return head.encode() + question.body
