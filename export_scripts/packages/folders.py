"""Publishes the files of exported encoders: all or none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path


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
