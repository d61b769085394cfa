"""Folders that are written whole, or not at all."""

from __future__ import annotations

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
