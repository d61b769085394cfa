"""Starts `serving.private` in the server's environment, and ends it."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipserve.client import Client, KeyFile
from clipserve.errors import ServerError

ROOT = Path(__file__).parents[1]
SERVER_PYTHON = ROOT / ".venv" / "bin" / "python"


@dataclass(frozen=True)
class Addresses:
    """Where a server is reached."""

    url: str
    management_url: str
    metrics_url: str
    key_file: str

    def client(self) -> Client:
        """A client of the server."""
        return Client(self.url, self.management_url, KeyFile(Path(self.key_file), self.management_url))


@contextlib.contextmanager
def running_server(store: Path) -> Iterator[Addresses]:
    """A private TorchServe of the archives in `store`, on free ports.

    Raises:
        ServerError: it does not become ready; its own words are on standard error.
    """
    process = subprocess.Popen(
        [SERVER_PYTHON, "-m", "serving.private", store.resolve()],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise ServerError(f"no server of {store}: it ended with status {process.wait()}")
        yield Addresses(**json.loads(line))
    finally:
        process.communicate()
