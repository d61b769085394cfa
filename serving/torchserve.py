"""`python -m serving.torchserve --start …`: TorchServe's own command, with what it needs of this machine.

Java where PATH has none, a temp dir of the folder that it is started in, and files for their owner only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from clipserve.errors import ServerError
from serving.local import private_folder
from serving.server import environment, server_in, torchserve


def main() -> None:
    """Becomes `torchserve` with the same words; ends with 1 where there is no Java."""
    try:
        variables = environment(private_folder(server_in(Path.cwd()).temporary))
    except (ServerError, OSError) as error:
        sys.exit(f"torchserve: {error}")
    os.umask(0o077)
    # Not a child: signals are torchserve's.
    os.execve(torchserve(), [torchserve(), *sys.argv[1:]], variables)  # noqa: S606


if __name__ == "__main__":
    main()
