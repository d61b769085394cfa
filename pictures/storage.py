"""LanceDB in a folder, for tables of pictures and of errors: statements, one writer, errors in a sentence."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import filelock
import lancedb
import pyarrow as pa

from pictures.errors import PicturesError
from pictures.paths import printable, sql_text

LOCK = "index.lock"

# How many rows a statement names at most: keeps SQL texts short.
NAMED_ROWS = 500


def connect(folder: Path) -> lancedb.DBConnection:
    """The database of a folder; what other processes write is seen at once."""
    return lancedb.connect(folder, read_consistency_interval=datetime.timedelta(0))


@contextlib.contextmanager
def storage_errors(folder: Path, doing: str = "written") -> Iterator[None]:
    """Puts LanceDB's errors (RuntimeError, ValueError or OSError, by turns) into one sentence.

    Raises:
        PicturesError: there was one.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = printable(str(error).strip().split("\n")[0])[:300]
        raise PicturesError(
            f"{printable(str(folder))}: the table cannot be {doing}: {reason}; what it held is as it was"
        ) from error


def naming(column: str, values: Iterable[str]) -> Iterator[str]:
    """SQL conditions that name the rows of `values`, some at a time."""
    rest = iter(values)
    while part := list(islice(rest, NAMED_ROWS)):
        yield f"{column} IN ({', '.join(map(sql_text, part))})"


def all_of(*conditions: str | None) -> str:
    """The SQL condition that all of some are true."""
    return " AND ".join(f"({condition})" for condition in conditions if condition is not None)


def put(table: lancedb.table.Table, rows: pa.Table) -> None:
    """Adds rows, each in the place of that of its path; in one step, with all of them in memory at once."""
    merge = table.merge_insert("path").when_matched_update_all()
    merge.when_not_matched_insert_all().execute(rows)


def remove(table: lancedb.table.Table, paths: Iterable[str]) -> None:
    """Removes the rows of paths."""
    for condition in naming("path", paths):
        table.delete(condition)


@contextlib.contextmanager
def sole_writer(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Holds the folder's writer lock, which the system takes back from a process that dies.

    LanceDB's keys are not unique: two writers could add the same path twice.

    Args:
        folder: of the table; made where it is missing.
        on_wait: called once if another writer has to be waited for.

    Raises:
        PicturesError: the folder cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            on_wait()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
