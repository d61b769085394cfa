"""Starts `scale.serve` in the scale room's environment, and ends it; needs no Ray itself.

For programs of another environment, such as the HTTP tests and the benchmark.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipserve.client import Client, KeyFile
from clipserve.errors import ServerError
from serving.local import ROOT, free_ports

SCALE_PYTHON = ROOT / ".venv-scale" / "bin" / "python"

# The last thing that it prints once it serves.
READY = "Ctrl-C stops it."


@dataclass(frozen=True)
class RunningServer:
    """A Ray Serve of this machine.

    Attributes:
        url: of predictions, of OpenAI's paths below `/v1`, and of what TorchServe's management address gives.
        key_file: its tokens.
        pid: of the process that all of Ray's descend from.
    """

    url: str
    key_file: Path
    pid: int

    @property
    def token(self) -> str:
        """The bearer token of predictions and of OpenAI's paths."""
        return KeyFile(self.key_file).token("inference")

    def client(self, timeout: float = 100.0) -> Client:
        """A client of this server; `timeout` in seconds is for one request."""
        return Client(self.url, self.url, KeyFile(self.key_file, self.url), timeout=timeout)


@contextlib.contextmanager
def running_server(store: Path, temporary: Path | None = None) -> Iterator[RunningServer]:
    """A server of the encoders in `store` on a free port, with everything of its own in one folder.

    Args:
        temporary: the folder, with a path of at most 36 characters, for Ray puts sockets below it; None is
            one that is removed at the end. No other user may enter it.

    Raises:
        ServerError: it does not start; its own words are in the message.
    """
    with contextlib.ExitStack() as stack:
        if temporary is None:
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clipserve-")))
        (port,) = free_ports(1)
        key_file = temporary / "key_file.json"
        log = stack.enter_context((temporary / "stderr.log").open("w+", encoding="utf-8"))
        process = subprocess.Popen(
            [
                *(SCALE_PYTHON, "-m", "scale.serve", "--until-stdin-ends"),
                *("--store", store.resolve(), "--port", str(port)),
                *("--key-file", key_file, "--temporary", temporary),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            if not any(line.strip() == READY for line in process.stdout or ()):
                log.seek(0)
                said = (log.read().strip().splitlines() or ["nothing"])[-1]
                raise ServerError(f"no server of {store}: it ended with {process.wait()} and said: {said}")
            yield RunningServer(f"http://127.0.0.1:{port}", key_file, process.pid)
        finally:
            # The end of its standard input is its end.
            process.communicate()
