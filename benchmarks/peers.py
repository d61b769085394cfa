"""The servers that are compared over HTTP: how each is started, asked and stopped."""

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
import numpy as np
import psutil

from benchmarks.child import OFFLINE, PeerError
from benchmarks.usage import family
from benchmarks.workloads import SMALLEST, WORKLOADS, Workload, labels, sentences
from clipserve.client import ENDPOINTS, Management
from clipserve.encoder_spec import FloatArray, decode_vector
from clipserve.errors import ServerError
from scale.serve.server_process import SCALE_PYTHON, running_ray_serve
from serving.local import free_ports
from serving.running import RunningServer
from serving.server import Server, private_server

ROOT = Path(__file__).parents[1]

INFINITY_ENVIRONMENT = ROOT / ".venv-infinity"

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


class _Asked:
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

    def _first_answer(self, workload: Workload, body: bytes) -> dict[str, Any]:
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


class _Ours(_Asked):
    """Our protocol: requests as `clipserve.client` makes them."""

    title: str

    def __init__(self, inputs: Inputs):
        self._inputs = inputs

    def serves(self, workload: Workload) -> bool:
        """Everything."""
        return True

    def bodies(self, workload: Workload) -> list[bytes]:
        """A workload's requests, to be sent in turns."""
        pictures = self._inputs.pictures[workload.megapixels]
        if workload.encoding == "raw":
            return [path.read_bytes() for path in pictures]
        form = {"encoding_format": workload.encoding}
        if workload.kind == "text":
            return [_dump({**form, "input": texts}) for texts in _text_groups(workload)]
        if workload.kind == "image":
            return [_dump({**form, "input": [{"image": _base64(path)}]}) for path in pictures]
        given = {"labels": labels(workload), "template": "a photo of {}"}
        return [_dump({"images": [{"image": _base64(path)}], **given}) for path in pictures]

    def _first_vector(self, begin: float) -> float:
        """Waits for the first picture's embedding, which must be right; seconds since `begin`."""
        workload = WORKLOADS["image"]
        answer = self._first_answer(workload, self.bodies(workload)[0])
        first = time.perf_counter() - begin
        _check_same(decode_vector(answer["data"][0]["embedding"]), self._inputs.reference, self.title)
        return first


class TorchServePeer(_Ours):
    """Ours, the three archives loaded at once.

    Args:
        workers: of an endpoint, where not those of its archive.
    """

    title = "clipserve"

    def __init__(self, inputs: Inputs, workers: Mapping[str, int]):
        super().__init__(inputs)
        self._scale = workers
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._server: Server | None = None

    def start(self) -> dict[str, float]:
        """See `HttpPeer`."""
        self._folder = tempfile.TemporaryDirectory(prefix="clipserve-bench-")
        self._server = server = private_server(self._inputs.store, Path(self._folder.name))
        begin = time.perf_counter()
        server.start()
        first = self._first_vector(begin)
        server.wait_ready(START_SECONDS)
        ready = time.perf_counter() - begin
        for endpoint, count in self._scale.items():
            self._set_workers(endpoint, count)
        return {"cold_start_s": first, "ready_s": ready}

    def check_runs(self) -> None:
        """See `_Asked`."""
        assert self._server is not None
        if self._server.running_pid() is None:
            raise PeerError(f"TorchServe has ended; {self._server.logs / 'ts_log.log'} says why")

    def _set_workers(self, endpoint: str, count: int) -> None:
        assert self._server is not None
        response = httpx.put(
            f"{self._server.properties['management_address']}/models/{endpoint}",
            params={"min_worker": count, "max_worker": count, "synchronous": "true"},
            headers={"Authorization": f"Bearer {self._server.key_file.token('management')}"},
            timeout=START_SECONDS,
            trust_env=False,
        )
        if response.status_code != httpx.codes.OK:
            raise PeerError(f"{endpoint}: {count} workers: status {response.status_code}: {response.text}")

    def stop(self) -> None:
        """See `HttpPeer`."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def processes(self) -> list[psutil.Process]:
        """See `HttpPeer`."""
        return self._server.processes() if self._server is not None else []

    def workers(self) -> dict[str, list[psutil.Process]]:
        """See `HttpPeer`."""
        assert self._server is not None
        with self._server.client() as client:
            management = Management(client)
            return {
                endpoint: [psutil.Process(worker.pid) for worker in management.workers(endpoint)]
                for endpoint in ENDPOINTS
            }

    def target(self, workload: Workload) -> Target:
        """See `HttpPeer`."""
        assert self._server is not None
        token = self._server.key_file.token("inference")
        return Target(
            f"{self._server.properties['inference_address']}/predictions/clip_{workload.kind}",
            {**_headers(workload), "Authorization": f"Bearer {token}"},
        )


class _ProcessPeer(_Asked):
    """A server that is one command, without tokens."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""

    def _run(self, command: Sequence[str], environment: Mapping[str, str], url: str) -> None:
        if not Path(command[0]).is_file():
            raise PeerError(f"not installed: {Path(command[0]).relative_to(ROOT)} is missing")
        self._url = url
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
        """See `_Asked`."""
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


class InfinityPeer(_ProcessPeer):
    """infinity-emb on the same CLIP checkpoint; its texts go to the checkpoint's own English tower."""

    title = "infinity-emb"

    def __init__(self, inputs: Inputs):
        super().__init__()
        self._inputs = inputs
        modules = json.loads((inputs.clip / "modules.json").read_text(encoding="utf-8"))
        self._model = inputs.clip / modules[0]["path"]

    def start(self) -> dict[str, float]:
        """See `HttpPeer`."""
        [port] = free_ports(1)
        begin = time.perf_counter()
        self._run(
            [
                str(INFINITY_ENVIRONMENT / "bin" / "infinity_emb"),
                "v2",
                *("--model-id", str(self._model.resolve())),
                *("--served-model-name", "clip"),
                *("--engine", "torch"),
                *("--device", "cpu"),
                *("--dtype", "float32"),
                "--no-compile",
                "--no-bettertransformer",
                *("--host", "127.0.0.1"),
                *("--port", str(port)),
            ],
            # One process that computes: it may have all the cores.
            {"OMP_NUM_THREADS": str(psutil.cpu_count())},
            f"http://127.0.0.1:{port}",
        )
        answer = self._first_answer(WORKLOADS["image"], _infinity_images([self._inputs.first_picture]))
        first = time.perf_counter() - begin
        vector = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
        _check_same(vector, self._inputs.reference, self.title)
        return {"cold_start_s": first, "ready_s": first}

    def serves(self, workload: Workload) -> bool:
        """No similarities, and no picture but in JSON."""
        return workload.kind != "similarity" and workload.encoding != "raw"

    def target(self, workload: Workload) -> Target:
        """See `HttpPeer`."""
        return Target(f"{self._url}/embeddings", JSON_HEADERS)

    def bodies(self, workload: Workload) -> list[bytes]:
        """See `HttpPeer`."""
        if workload.kind == "text":
            form = {"model": "clip", "modality": "text", "encoding_format": workload.encoding}
            return [_dump({**form, "input": texts}) for texts in _text_groups(workload)]
        return [_infinity_images([path.read_bytes()]) for path in self._inputs.pictures[workload.megapixels]]


def _headers(workload: Workload) -> dict[str, str]:
    return {"Content-Type": "image/jpeg"} if workload.encoding == "raw" else JSON_HEADERS


def _infinity_images(pictures: Sequence[bytes]) -> bytes:
    uris = [f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}" for data in pictures]
    form = {"model": "clip", "modality": "image", "encoding_format": "base64"}
    return _dump({**form, "input": uris})


class RayServePeer(_Ours):
    """Ours on Ray Serve: the same core, encoders and settings behind another server."""

    title = "clipserve on Ray Serve"

    def __init__(self, inputs: Inputs):
        super().__init__(inputs)
        self._stack = contextlib.ExitStack()
        self._running: RunningServer | None = None

    def start(self) -> dict[str, float]:
        """See `HttpPeer`."""
        if not SCALE_PYTHON.is_file():
            raise PeerError(f"not installed: {SCALE_PYTHON.relative_to(ROOT)} is missing")
        begin = time.perf_counter()
        try:
            self._running = self._stack.enter_context(running_ray_serve(self._inputs.store))
        except ServerError as error:
            raise PeerError(str(error)) from error
        first = self._first_vector(begin)
        return {"cold_start_s": first, "ready_s": first}

    def check_runs(self) -> None:
        """See `_Asked`."""
        if not self.processes():
            raise PeerError("has ended")

    def processes(self) -> list[psutil.Process]:
        """See `HttpPeer`."""
        return family(self._running.pid) if self._running is not None else []

    def workers(self) -> dict[str, list[psutil.Process]]:
        """See `HttpPeer`."""
        everything = self.processes()
        return {name: [p for p in everything if f":{name}" in p.name()] for name in ENDPOINTS}

    def target(self, workload: Workload) -> Target:
        """See `HttpPeer`."""
        assert self._running is not None
        token = self._running.keys.token("inference")
        return Target(
            f"{self._running.url}/predictions/clip_{workload.kind}",
            {**_headers(workload), "Authorization": f"Bearer {token}"},
        )

    def stop(self) -> None:
        """See `HttpPeer`."""
        self._stack.close()
        self._running = None


def _text_groups(workload: Workload) -> list[list[str]]:
    """The sentences in requests of `workload.texts`; each begins elsewhere, so that all are full."""
    everything = sentences()
    return [
        [everything[(start + i) % len(everything)] for i in range(workload.texts)]
        for start in range(0, len(everything), workload.texts)
    ]


def _check_same(found: FloatArray, reference: FloatArray, title: str) -> None:
    cosine = float(found @ reference / (np.linalg.norm(found) * np.linalg.norm(reference)))
    if not cosine >= SAME_COSINE:
        raise PeerError(f"{title} answers another vector than the original: cosine {cosine:.4f}")


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _dump(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
