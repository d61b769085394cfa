"""A Ray Serve with the surface that the tests use of `serving.server.Server`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from clipserve.client import Client, KeyFile, Management
from clipserve.endpoints import ENDPOINTS
from scale.serve.server_process import running_ray_serve
from serving.running import RunningServer


@dataclass(frozen=True)
class RayServer:
    """A running Ray Serve.

    Attributes:
        folder: everything of its own, the key file for one.
    """

    folder: Path
    running: RunningServer

    @property
    def properties(self) -> dict[str, str]:
        """One address for what TorchServe has two for."""
        return {"inference_address": self.running.url, "management_address": self.running.url}

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(ENDPOINTS)

    @property
    def key_file(self) -> KeyFile:
        return self.running.keys

    @property
    def logs(self) -> Path:
        return self.folder / "ray" / "session_latest" / "logs"

    def client(self) -> Client:
        return self.running.client()

    def processes(self) -> list[psutil.Process]:
        process = psutil.Process(self.running.pid)
        return [process, *process.children(recursive=True)]

    def wait_ready(self, timeout: float) -> None:
        with self.client() as client:
            Management(client).wait_ready(timeout)


@contextlib.contextmanager
def ray_server(store: Path) -> Iterator[RayServer]:
    # Not pytest's folder: Ray's sockets need a short path.
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as folder,
        running_ray_serve(store, Path(folder)) as running,
    ):
        yield RayServer(Path(folder), running)
