"""`python -m serving.private STORE`: a TorchServe for a program of another environment, see `running`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from clipserve.client import KEY_FILE
from clipserve.command import run_command
from clipserve.interrupt import interrupt_on_sigterm
from serving.running import RunningServer
from serving.server import Server


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m serving.private", description=__doc__)
    parser.add_argument("store", type=Path, help="folder of the archives")
    arguments = parser.parse_args(argv)

    def serve() -> None:
        with Server.private(arguments.store) as server:
            properties = server.properties
            RunningServer(
                properties["inference_address"],
                properties["management_address"],
                properties["metrics_address"],
                str(server.folder / KEY_FILE),
                server.running_pid() or 0,
            ).serve_until_stdin_ends()

    return run_command("private server", serve)


if __name__ == "__main__":
    interrupt_on_sigterm()
    sys.exit(main())
