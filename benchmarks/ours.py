"""clipserve among the servers that are compared: on TorchServe, and on Ray Serve."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import httpx
import psutil

from benchmarks.child import PeerError
from benchmarks.peers import (
    JSON_HEADERS,
    ROOT,
    START_SECONDS,
    Asked,
    Inputs,
    Target,
    check_same,
    dump,
    encoded,
    openai_bodies,
    text_groups,
)
from benchmarks.usage import family
from benchmarks.workloads import WORKLOADS, Workload, labels
from clipserve.client import Management
from clipserve.encoder_spec import decode_vector
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import ServerError
from scale.serve.server_process import SCALE_PYTHON, running_ray_serve
from serving.running import RunningServer
from serving.server import Server, private_server

# The endpoint that OpenAI's clients know.
DOOR = "v1"


class _Ours(Asked):
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
        if workload.door:
            return openai_bodies(workload, self._inputs, {})
        form = {"encoding_format": workload.encoding}
        if workload.kind == "text":
            return [dump({**form, "input": texts}) for texts in text_groups(workload)]
        if workload.kind == "image":
            return [dump({**form, "input": [{"image": encoded(path)}]}) for path in pictures]
        given = {"labels": labels(workload), "template": "a photo of {}"}
        return [dump({"images": [{"image": encoded(path)}], **given}) for path in pictures]

    def _first_vector(self, begin: float) -> float:
        """Waits for the first picture's embedding, which must be right; seconds since `begin`."""
        workload = WORKLOADS["image"]
        answer = self.first_answer(workload, self.bodies(workload)[0])
        first = time.perf_counter() - begin
        check_same(decode_vector(answer["data"][0]["embedding"]), self._inputs.reference, self.title)
        return first


class TorchServePeer(_Ours):
    """Ours on TorchServe.

    Args:
        inputs: their store is served.
        title: as in the table.
        endpoints: which of them are loaded.
        workers: of an endpoint, where not those of its archive.
    """

    def __init__(
        self, inputs: Inputs, title: str, endpoints: Collection[str], workers: Mapping[str, int] | None = None
    ):
        super().__init__(inputs)
        self.title = title
        self._endpoints = endpoints
        self._scale = workers or {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._server: Server | None = None

    def serves(self, workload: Workload) -> bool:
        """What is loaded."""
        return _endpoint(workload) in self._endpoints

    def start(self) -> dict[str, float]:
        """See `HttpPeer`."""
        self._folder = tempfile.TemporaryDirectory(prefix="clipserve-bench-")
        loaded = {"load_models": ",".join(f"{name}={name}.mar" for name in self._endpoints)}
        self._server = server = private_server(self._inputs.store, Path(self._folder.name), overrides=loaded)
        begin = time.perf_counter()
        server.start()
        first = self._first_vector(begin)
        server.wait_ready(START_SECONDS)
        ready = time.perf_counter() - begin
        for endpoint, count in self._scale.items():
            self._set_workers(endpoint, count)
        return {"cold_start_s": first, "ready_s": ready}

    def check_runs(self) -> None:
        """See `Asked`."""
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
            return {
                endpoint: [psutil.Process(worker.pid) for worker in Management(client).workers(endpoint)]
                for endpoint in self._endpoints
            }

    def target(self, workload: Workload) -> Target:
        """See `HttpPeer`."""
        assert self._server is not None
        token = self._server.key_file.token("inference")
        return Target(
            f"{self._server.properties['inference_address']}/predictions/{ENDPOINTS[_endpoint(workload)].path}",
            {**_headers(workload), "Authorization": f"Bearer {token}"},
        )


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
            f"{self._running.url}/predictions/{ENDPOINTS[_endpoint(workload)].path}",
            {**_headers(workload), "Authorization": f"Bearer {token}"},
        )

    def stop(self) -> None:
        """See `HttpPeer`."""
        self._stack.close()
        self._running = None


def _endpoint(workload: Workload) -> str:
    return DOOR if workload.door else f"clip_{workload.kind}"


def _headers(workload: Workload) -> dict[str, str]:
    return {"Content-Type": "image/jpeg"} if workload.encoding == "raw" else JSON_HEADERS
