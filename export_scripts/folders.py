"""Publishes folders that hold an exported encoder: whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(parent: Path) -> Iterator[Path]:
    """A folder in `parent`, made where it is missing, to build in; removed with what is left in it."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".staged-", dir=parent) as folder:
        yield Path(folder)


def publish(made: Path, target: Path) -> None:
    """Moves the folder `made`, of `staged`, to `target`, in the place of what stands there."""
    if target.exists():
        # A folder that holds something cannot be replaced in one step; this one goes with the staging folder.
        target.rename(made.with_name(f"{made.name}-before"))
    made.rename(target)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for the same file; a copy where that lies on another filesystem."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
