"""What Ray leaves open on this machine, closed: its token and its folders. Needs no Ray itself."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from clipserve.errors import ServerError
from serving.local import private_folder


def token_file() -> Path:
    """Where Ray keeps its token, with which one runs code on its cluster."""
    told = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(told) if told else Path.home() / ".ray" / "auth_token"


def keep_token_private() -> None:
    """Makes the token's file its owner's only, and the token where a Ray of this machine's would need to.

    Ray 2.60.0 makes it with what the umask leaves, 0644 mostly.

    Raises:
        ServerError: it is another user's.
    """
    path = token_file()
    try:
        status = path.stat()
    except FileNotFoundError:
        if "RAY_AUTH_TOKEN" not in os.environ and os.environ.get("RAY_AUTH_MODE") != "disabled":
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))  # as Ray's own
        return
    if status.st_uid != os.getuid():
        raise ServerError(
            f"{path}, Ray's token, is another user's (uid {status.st_uid}), who could run code here; "
            "remove it, or name one of your own with RAY_AUTH_TOKEN_PATH=…"
        )
    if status.st_mode & 0o077:
        path.chmod(0o600)
        print(
            f"{path}, Ray's token, could be read by other users (mode {status.st_mode & 0o777:04o}); it no "
            "longer can. To have a new one, delete it before the next start",
            file=sys.stderr,
        )


@contextlib.contextmanager
def private_files(folder: Path | None) -> Iterator[Path]:
    """A folder for Ray's sessions and logs that no other user reaches; what is made meanwhile is its owner's.

    Args:
        folder: its parent; None is one that is removed at the end.

    Raises:
        ServerError: the folder is another user's.
    """
    umask = os.umask(0o077)
    try:
        with contextlib.ExitStack() as stack:
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-")))
            # Ray opens its own folder to all users (0777), whatever the umask: the one above it stays shut.
            yield private_folder(folder).resolve() / "ray"
    finally:
        os.umask(umask)
