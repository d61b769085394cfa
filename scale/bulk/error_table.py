"""The pictures that could not be embedded, with the reason: a table beside that of the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path

import lancedb
import pyarrow as pa

from pictures.paths import printable, sql_text
from scale.bulk.errors import BulkError
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

# How many rows a statement names at most: keeps SQL texts short.
NAMED_ROWS = 500


class ErrorTable:
    """One row for each picture that failed when it was last tried.

    Args:
        folder: of the pictures' table.

    Raises:
        BulkError: it cannot be read or written.
    """

    def __init__(self, folder: Path):
        try:
            database = lancedb.connect(folder)
            self._table = database.create_table(NAME, schema=_SCHEMA, exist_ok=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise BulkError(
                f"{printable(str(folder))}: its table of errors cannot be opened: {error}"
            ) from error

    def failures(self) -> dict[str, Failure]:
        """All of them, by path."""
        rows = self._table.to_arrow().to_pylist()
        return {row["path"]: Failure(**row) for row in rows}

    def put(self, failures: Sequence[Failure]) -> None:
        """Adds failures, each in the place of an earlier one of its path."""
        if failures:
            by_path = {failure.path: asdict(failure) for failure in failures}
            rows = pa.Table.from_pylist(list(by_path.values()), schema=_SCHEMA)
            merge = self._table.merge_insert("path").when_matched_update_all()
            merge.when_not_matched_insert_all().execute(rows)

    def forget(self, paths: Iterable[str]) -> None:
        """Removes the failures of paths."""
        rest = iter(paths)
        while part := list(islice(rest, NAMED_ROWS)):
            self._table.delete(f"path IN ({', '.join(map(sql_text, part))})")
