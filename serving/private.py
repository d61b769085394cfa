"""`python -m serving.private STORE`: a TorchServe of its own for as long as standard input is open.

Prints one line of JSON with its addresses once it is ready, and ends when standard input does. So a program
of another environment, which has no TorchServe, can have a server that never outlives it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from clipserve.errors import ClipServeError
from clipserve.interrupt import interrupt_on_sigterm
from serving.server import private_server

READY_SECONDS = 240.0


def main() -> int:
    """Serves the archives of the folder that is named on the command line."""
    with tempfile.TemporaryDirectory(prefix="clipserve-search-") as folder:
        server = private_server(Path(sys.argv[1]), Path(folder))
        try:
            server.start()
            server.wait_ready(READY_SECONDS)
            addresses = {
                "url": server.properties["inference_address"],
                "management_url": server.properties["management_address"],
                "metrics_url": server.properties["metrics_address"],
                "key_file": str(server.folder / "key_file.json"),
            }
            print(json.dumps(addresses), flush=True)
            sys.stdin.read()
        except ClipServeError as error:
            print(f"private server: {error}", file=sys.stderr)
            return 1
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    interrupt_on_sigterm()
    sys.exit(main())
