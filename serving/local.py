"""What every server that runs on this machine needs, whichever it is."""

from __future__ import annotations

import socket
from pathlib import Path

from clipserve.errors import ServerError

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config.properties"


def read_properties(path: Path) -> dict[str, str]:
    """Reads a properties file of plain `name=value` lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if line.strip() and not line.startswith("#")]
    return {name.strip(): value.strip() for name, _, value in pairs}


def check_port_free(host: str, port: int, otherwise: str) -> None:
    """Checks that a server can listen there.

    Args:
        otherwise: what one may do, but stop the program that listens.

    Raises:
        ServerError: it cannot.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerError(
                f"port {port} is taken by another program; stop that, or {otherwise}"
            ) from error


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()
