"""Starts `scale.serve` in the scale room's environment, and ends it; needs no Ray itself.

For programs of another environment, such as the HTTP tests and the benchmark.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from serving.local import ROOT, free_ports
from serving.running import RunningServer, running

SCALE_PYTHON = ROOT / ".venv-scale" / "bin" / "python"


@contextlib.contextmanager
def running_ray_serve(store: Path, temporary: Path | None = None) -> Iterator[RunningServer]:
    """A Ray Serve of the encoders in `store` on a free port, see `running`.

    Args:
        temporary: folder of everything of its own, with a path of at most 36 characters, for Ray puts sockets
            below it; None is one that is removed at the end. No other user may enter it.

    Raises:
        ServerError: it does not start; its own words are in the message.
    """
    with contextlib.ExitStack() as stack:
        if temporary is None:
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clipserve-")))
        (port,) = free_ports(1)
        command: list[str | Path] = [
            *(SCALE_PYTHON, "-m", "scale.serve", "--until-stdin-ends"),
            *("--store", store.resolve(), "--port", str(port)),
            *("--key-file", temporary / "key_file.json", "--temporary", temporary),
        ]
        yield stack.enter_context(running(command))
