"""Publishes exported encoders, in files and in folders: whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
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


def publish_files(made: Sequence[Path], folder: Path) -> None:
    """Moves files of a staging folder into `folder`, in the place of those of the same names: all or none.

    No file system moves several files in one step. A process that is killed in between (`kill -9`, a power
    cut) leaves what it had moved; it cannot leave a description beside a file that it is not of, so that
    `make archive` refuses what is missing, and `make export` again puts all in place. What was replaced is
    then in the staging folder's `before`.

    Args:
        made: in one folder; of what is replaced, the first goes first, and comes last.
    """
    before = made[0].parent / "before"
    before.mkdir()
    replaced = [(folder / path.name, before / path.name) for path in made if (folder / path.name).exists()]
    moves = [*replaced, *((path, folder / path.name) for path in reversed(made))]
    done = []
    try:
        for source, target in moves:
            # Before it is done: Ctrl-C may come in between.
            done.append((source, target))
            source.replace(target)
    except BaseException:
        for source, target in reversed(done):
            if not source.exists():
                target.replace(source)
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for the same file; a copy where that lies on another filesystem."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
