"""The pictures that could not be embedded, with the reason: a table beside that of the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import pyarrow as pa

from pictures.storage import connect, put, remove, storage_errors
from scale.bulk.sources import Failure

NAME = "errors"

_SCHEMA = pa.schema(
    [
        pa.field(
            field.name, pa.int64() if field.name in ("size", "mtime_ns") else pa.string(), nullable=False
        )
        for field in fields(Failure)
    ]
)


class ErrorTable:
    """One row for each picture that failed when it was last tried.

    Args:
        folder: of the pictures' table.

    Raises:
        PicturesError: it cannot be read or written.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        with storage_errors(folder):
            self._table = connect(folder).create_table(NAME, schema=_SCHEMA, exist_ok=True)

    def failures(self) -> dict[str, Failure]:
        """All of them, by path."""
        rows = self._table.to_arrow().to_pylist()
        return {row["path"]: Failure(**row) for row in rows}

    def put(self, failures: Sequence[Failure]) -> None:
        """Adds failures, each in the place of an earlier one of its path.

        Raises:
            PicturesError: the folder cannot be written.
        """
        if failures:
            by_path = {failure.path: asdict(failure) for failure in failures}
            with storage_errors(self._folder):
                put(self._table, pa.Table.from_pylist(list(by_path.values()), schema=_SCHEMA))

    def forget(self, paths: Iterable[str]) -> None:
        """Removes the failures of paths.

        Raises:
            PicturesError: the folder cannot be written.
        """
        with storage_errors(self._folder):
            remove(self._table, paths)
