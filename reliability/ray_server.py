"""A Ray Serve of its own, with the surface that callers need of a `serving.server.Server`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from clipserve.client import Client, KeyFile, Management
from clipserve.endpoints import ENDPOINTS
from scale.serve.server_process import running_ray_serve
from serving.running import RunningServer


def actor_process(processes: Iterable[psutil.Process], actor: str) -> psutil.Process:
    """The one process of an actor, which Ray names by it."""
    (found,) = [p for p in processes if f"ray::{actor}" in " ".join(p.cmdline())]
    return found


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
        """The names that it serves."""
        return tuple(ENDPOINTS)

    @property
    def key_file(self) -> KeyFile:
        """Its tokens."""
        return self.running.keys

    @property
    def logs(self) -> Path:
        """Folder of its logs."""
        return self.folder / "ray" / "session_latest" / "logs"

    def client(self) -> Client:
        """A client of this server, with its key file."""
        return self.running.client()

    def processes(self) -> list[psutil.Process]:
        """The process that started Ray, and all of Ray's."""
        process = psutil.Process(self.running.pid)
        return [process, *process.children(recursive=True)]

    def frontends(self) -> dict[str, psutil.Process]:
        """Our ingress, which takes requests."""
        return {"ingress": actor_process(self.processes(), "ServeReplica:clipserve:ingress")}

    def wait_ready(self, timeout: float) -> None:
        """Waits until every endpoint answers its golden inputs.

        Args:
            timeout: seconds.

        Raises:
            ServerError: it does not.
        """
        with self.client() as client:
            Management(client).wait_ready(timeout)


@contextlib.contextmanager
def ray_server(store: Path) -> Iterator[RayServer]:
    """A server of the encoders in `store` on a free port, for as long as the `with` block lasts.

    Raises:
        ServerError: it does not start.
    """
    # A short path, which Ray's sockets need.
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as folder,
        running_ray_serve(store, Path(folder)) as running,
    ):
        yield RayServer(Path(folder), running)
