"""What every server that runs on this machine needs, whichever it is."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from clipserve.errors import ServerError

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config.properties"

# How long a person is left without a line.
TELL_SECONDS = 3.0


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
        except PermissionError as error:
            raise ServerError(f"port {port} is the administrator's; {otherwise}") from error
        except OverflowError as error:
            raise ServerError(f"port {port} is none: they end at 65535; {otherwise}") from error
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ServerError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
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


def private_folder(path: Path) -> Path:
    """Makes a folder that only this user may enter: what lies in it is run, or is a key.

    Raises:
        ServerError: it is there already, and is another user's or no folder.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ServerError(f"{path} is another user's, or a link; remove it, or ask who made it")
    path.chmod(0o700)
    return path


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Prints a line, and another every few seconds for as long as the `with` block lasts."""
    started = time.monotonic()
    done = threading.Event()

    def tell() -> None:
        while not done.wait(TELL_SECONDS):
            print(f"{what}: {time.monotonic() - started:.0f} s", flush=True)

    print(what, flush=True)
    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
