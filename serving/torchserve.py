"""`python -m serving.torchserve --start …`: TorchServe's own command, with what it needs of this machine.

Java where PATH has none, a temp dir of the folder that it is started in, and files for their owner only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from clipserve.command import run_command
from serving.local import private_folder
from serving.server import environment, server_in, torchserve


def main() -> int:
    """Becomes `torchserve` with the same words; see `run_command` for where it cannot."""

    def become() -> None:
        variables = environment(private_folder(server_in(Path.cwd()).temporary))
        os.umask(0o077)
        # Not a child: signals are torchserve's.
        os.execve(torchserve(), [torchserve(), *sys.argv[1:]], variables)  # noqa: S606

    return run_command("torchserve", become)


if __name__ == "__main__":
    sys.exit(main())
