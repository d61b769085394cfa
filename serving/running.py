"""Servers that are started in another environment, which has what they need, and never outlive their starter.

The contract, for TorchServe and Ray Serve alike: the program prints one line of JSON, a `RunningServer`, once
it is ready, and ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from clipserve.client import Client, KeyFile
from clipserve.errors import ServerError
from serving.local import ROOT

TORCHSERVE_PYTHON = ROOT / ".venv" / "bin" / "python"


@dataclass(frozen=True)
class RunningServer:
    """Where a running server is reached, whichever it is.

    Attributes:
        url: of predictions.
        management_url: of what a server says of itself, and of new tokens.
        metrics_url: of Prometheus's metrics; None where the server has no address for them.
        key_file: path of its tokens.
        pid: of the process that all of it descends from.
    """

    url: str
    management_url: str
    metrics_url: str | None
    key_file: str
    pid: int

    @property
    def keys(self) -> KeyFile:
        """Its tokens."""
        return KeyFile(Path(self.key_file), self.management_url)

    def client(self, timeout: float = 100.0) -> Client:
        """A client of this server; `timeout` in seconds is for one request."""
        return Client(self.url, self.management_url, self.keys, timeout=timeout)

    def serve_until_stdin_ends(self) -> None:
        """The program's side of the contract."""
        print(json.dumps(asdict(self)), flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def running(command: Sequence[str | Path]) -> Iterator[RunningServer]:
    """Runs a program that keeps the contract, for as long as the `with` block lasts.

    Raises:
        ServerError: it ends before it is ready; its last words are in the message.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                status = process.wait()
                errors.seek(0)
                said = (errors.read().strip().splitlines() or ["nothing"])[-1]
                raise ServerError(f"no server: it ended with status {status} and said: {said}")
            yield RunningServer(**json.loads(line))
        finally:
            # The end of its standard input is its end.
            process.communicate()


def running_torchserve(store: Path) -> contextlib.AbstractContextManager[RunningServer]:
    """A TorchServe of the archives in `store` on free ports, see `running`."""
    return running([TORCHSERVE_PYTHON, "-m", "serving.private", store.resolve()])
