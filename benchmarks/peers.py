"""What the servers have in common that are compared over HTTP: how each is started, asked and stopped."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import psutil

from benchmarks.child import OFFLINE, PeerError
from benchmarks.usage import family
from benchmarks.workloads import SMALLEST, Workload, sentences
from clipserve.encoder_spec import FloatArray
from clipserve.errors import ServerError
from clipserve.similarity import cosine

ROOT = Path(__file__).parents[1]

START_SECONDS = 300.0
POLL_SECONDS = 0.1
STOP_SECONDS = 15.0

# The bound that half precision keeps; with random weights, even unlike pictures come near each other.
SAME_COSINE = 0.999

JSON_HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Inputs:
    """What all are given.

    Attributes:
        pictures: JPEG files by a key of `workloads.SIZES`.
        clip, text: checkpoint folders, in sentence-transformers' layouts.
        store: with our archives, made of them.
        reference: what sentence-transformers makes of the first of the smallest pictures.
    """

    pictures: Mapping[str, Sequence[Path]]
    clip: Path
    text: Path
    store: Path
    reference: FloatArray

    @property
    def first_picture(self) -> bytes:
        """The picture that `reference` is of."""
        return self.pictures[SMALLEST][0].read_bytes()


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    url: str
    headers: dict[str, str]


class HttpPeer(Protocol):
    """A server under comparison.

    Attributes:
        title: as in the table.
    """

    title: str

    def serves(self, workload: Workload) -> bool:
        """Whether it has an endpoint for it."""

    def start(self) -> dict[str, float]:
        """Starts it; `cold_start_s` until its first correct vector, `ready_s` until all of it is ready.

        Raises:
            ClipServeError: it is not installed, does not start, or answers something else.
        """

    def stop(self) -> None:
        """Stops it and everything that it started."""

    def processes(self) -> list[psutil.Process]:
        """All of it."""

    def workers(self) -> dict[str, list[psutil.Process]]:
        """Its processes by what they serve; empty where one process serves everything."""

    def target(self, workload: Workload) -> Target:
        """Where a workload's requests go."""

    def bodies(self, workload: Workload) -> list[bytes]:
        """A workload's requests, to be sent in turns."""


class Asked:
    """A server that is asked until it answers."""

    def check_runs(self) -> None:
        """Checks that it has not ended.

        Raises:
            PeerError: it has.
        """
        raise NotImplementedError

    def target(self, workload: Workload) -> Target:
        """See `HttpPeer`."""
        raise NotImplementedError

    def first_answer(self, workload: Workload, body: bytes) -> dict[str, Any]:
        """The answer to a request, as soon as there is one.

        Raises:
            PeerError: the server has ended, or there is none in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self.check_runs()
            with contextlib.suppress(httpx.HTTPError, ServerError):  # no server yet, or no token
                target = self.target(workload)
                response = httpx.post(
                    target.url, content=body, headers=target.headers, timeout=60.0, trust_env=False
                )
                if response.status_code == httpx.codes.OK:
                    answer: dict[str, Any] = response.json()
                    return answer
            time.sleep(POLL_SECONDS)
        raise PeerError(f"no answer within {START_SECONDS:g} s")


class ProcessPeer(Asked):
    """A server that is one command, without tokens."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def run(self, command: Sequence[str], environment: Mapping[str, str], url: str) -> None:
        """Starts the command; its requests go to `url`.

        Raises:
            PeerError: it is not installed.
        """
        if not Path(command[0]).is_file():
            raise PeerError(f"not installed: {Path(command[0]).relative_to(ROOT)} is missing")
        self.url = url
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by stop()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **OFFLINE, **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def check_runs(self) -> None:
        """See `Asked`."""
        assert self._process is not None
        if self._process.poll() is not None:
            self._log.seek(0)
            said = self._log.read().strip().splitlines() or ["nothing"]
            raise PeerError(f"ended with status {self._process.returncode}; last words: {said[-1]}")

    def stop(self) -> None:
        """See `HttpPeer`."""
        if self._process is None:
            return
        everything = family(self._process.pid)
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        _, alive = psutil.wait_procs(everything, timeout=1.0)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=5.0)
        self._process.wait()
        self._process = None
        self._log.close()

    def processes(self) -> list[psutil.Process]:
        """See `HttpPeer`."""
        return family(self._process.pid) if self._process is not None else []

    def workers(self) -> dict[str, list[psutil.Process]]:
        """See `HttpPeer`."""
        return {}


def text_groups(workload: Workload) -> list[list[str]]:
    """The sentences in requests of `workload.texts`; each begins elsewhere, so that all are full."""
    everything = sentences()
    return [
        [everything[(start + i) % len(everything)] for i in range(workload.texts)]
        for start in range(0, len(everything), workload.texts)
    ]


def openai_bodies(workload: Workload, inputs: Inputs, model: Mapping[str, str]) -> list[bytes]:
    """A workload in the form of OpenAI's `/v1/embeddings`, pictures as infinity-emb and our door take them.

    Args:
        model: `{"model": …}`, or nothing where a server needs no name.
    """
    form = {**model, "modality": workload.kind, "encoding_format": workload.encoding}
    if workload.kind == "text":
        return [dump({**form, "input": texts}) for texts in text_groups(workload)]
    return [
        dump({**form, "input": [f"data:image/jpeg;base64,{encoded(path)}"]})
        for path in inputs.pictures[workload.megapixels]
    ]


def check_same(found: FloatArray, reference: FloatArray, title: str) -> None:
    """Compares a server's vector with the original's, both float32 `[D]`.

    Raises:
        PeerError: it is another.
    """
    alike = cosine(found, reference)
    if not alike >= SAME_COSINE:
        raise PeerError(f"{title} answers another vector than the original: cosine {alike:.4f}")


def encoded(path: Path) -> str:
    """A file in base64."""
    return base64.b64encode(path.read_bytes()).decode("ascii")


def dump(body: Mapping[str, Any]) -> bytes:
    """A body of JSON."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
