"""Keeps the table up to date while a folder changes: `make index WATCH=1`.

What changed is only taken as a reason to look: each time the whole folder is listed and compared with the
table, so that nothing depends on every change being told, and renames are recognised as always.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from watchfiles import Change, watch

from clipserve.client import Client
from clipserve.errors import ClipServeError
from pictures.files import ENDINGS
from pictures.paths import path_to_text, printable
from search.errors import SearchError
from search.indexer import index_folder
from search.report import Report

# Linux's table of what is mounted where; white space and backslashes are written as three octal digits.
MOUNTS = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-7]{3})")

# Between looks at whether the folder is still there, in seconds.
STEP = 1.0
# Without any change, the folder is listed so often, in seconds: no system tells of all changes.
PATROL = 3600.0
# After a run that failed, as without a server, in seconds.
RETRY = 60.0
# Between looks at all files where the system does not tell of changes, in seconds.
POLL = 10.0


def follow(
    client: Client, root: Path, folder: Path, *, exclude: Sequence[str] = (), poll: bool = False
) -> Iterator[Report | ClipServeError]:
    """Brings the table to what lies in a folder, again and again, until the iterator is closed.

    A folder that vanishes, as with a disk that is unmounted, is waited for, and its rows stay; so do those of
    a disk that was mounted below it.

    Args:
        client: of the server that embeds.
        root: the folder of pictures.
        folder: of the table.
        exclude: patterns of what is left out, see `pictures.exclusions`.
        poll: looks at all files every few seconds: on network disks, whose changes no system tells.

    Yields:
        What each run did, or why it could not: it is tried again.

    Raises:
        SearchError: the system cannot watch so many folders.
    """
    disks: set[str] = set()
    while True:
        place = _place(root)
        disks.update(place.mounts if place else ())
        if place is None:
            yield SearchError(f"{printable(str(root))}: not there; its rows stay, and it is waited for")
            while _place(root) is None:
                time.sleep(STEP)
            continue
        # At first, and before what happens during a run is asked for.
        due = 0.0
        for changes in _changes(root, folder, poll):
            if _place(root) != place:
                break
            if not changes and time.monotonic() < due:
                continue
            try:
                yield index_folder(
                    client, root, folder, exclude=exclude, away=lambda: disks - mounts_below(root)
                )
                due = time.monotonic() + PATROL
            except ClipServeError as error:
                yield error
                due = time.monotonic() + RETRY


def _changes(root: Path, folder: Path, poll: bool) -> Iterator[bool]:
    """Whether there was a change since, every `STEP`."""
    table = str(folder.resolve()) + "/"

    def counts(change: Change, path: str) -> bool:
        # The table may lie in the folder, and changes with every run.
        if path.startswith(table):
            return False
        return change != Change.modified or os.fsencode(Path(path).suffix.lower()) in ENDINGS

    try:
        for changes in watch(
            root,
            watch_filter=counts,
            rust_timeout=int(STEP * 1000),
            yield_on_timeout=True,
            force_polling=poll,
            poll_delay_ms=int(POLL * 1000),
            ignore_permission_denied=True,
        ):
            yield bool(changes)
    except FileNotFoundError:
        return  # gone since it was looked at
    except OSError as error:
        raise SearchError(
            f"{printable(str(root))}: cannot be watched: {error.strerror or error}; WATCH=poll looks at its "
            "files instead"
        ) from error


class _Place(NamedTuple):
    """What another disk does not share that is mounted there, or below: device, number, disks below."""

    device: int
    number: int
    mounts: frozenset[str]


def _place(root: Path) -> _Place | None:
    """That of the folder; None without one."""
    try:
        status = root.stat()
    except OSError:
        return None
    return _Place(status.st_dev, status.st_ino, mounts_below(root)) if root.is_dir() else None


def mounts_below(root: Path) -> frozenset[str]:
    """Folders below another at which a disk is mounted, in text form."""
    inner = os.fsencode(root.resolve()).rstrip(b"/") + b"/"
    lines = MOUNTS.read_bytes().splitlines()
    mounts = (_OCTAL.sub(lambda digits: bytes([int(digits[1], 8)]), line.split()[4]) for line in lines)
    return frozenset(path_to_text(mount) for mount in mounts if mount.startswith(inner))
