"""The table of indexed pictures: a LanceDB table in a folder, with one writer at a time.

What is read of it is in `pictures.reader`.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from pictures import ann
from pictures.errors import PicturesError
from pictures.paths import below_condition, folded, printable
from pictures.reader import PictureReader
from pictures.rows import ADDED, Row, picture_schema, row_batch
from pictures.storage import connect, put, remove, storage_errors

NAME = "pictures"

# Versions older than this are removed: a reader that holds one has had the time to finish.
KEPT_VERSIONS = datetime.timedelta(hours=1)


class PictureTable(PictureReader):
    """Pictures of one embedding space, as `open_table` and `open_or_create_table` give them."""

    def write(self, new: Sequence[Row], changed: Sequence[Row]) -> None:
        """Adds rows of new paths and replaces those of changed ones; each in one step, or not at all.

        Raises:
            PicturesError: the folder cannot be written.
        """
        with storage_errors(self.folder):
            if new:
                # Not a merge, which would look through the whole table.
                self._table.add(row_batch(self.schema, new))
            if changed:
                put(self._table, row_batch(self.schema, changed))

    def add_stream(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Adds rows of new paths, any number of them, in one step or not at all; few are in memory at once.

        Args:
            batches: of the table's schema, see `picture_batch`.

        Raises:
            PicturesError: the folder cannot be written.
        """
        with storage_errors(self.folder):
            self._table.add(pa.RecordBatchReader.from_batches(self.schema, batches))

    def replace(self, rows: pa.Table) -> None:
        """Replaces rows by path in one step; all of them are in memory at once.

        Args:
            rows: of the table's schema, see `picture_batch`.

        Raises:
            PicturesError: the folder cannot be written.
        """
        with storage_errors(self.folder):
            put(self._table, rows)

    def remove(self, paths: Iterable[str]) -> None:
        """Removes the rows of paths.

        Raises:
            PicturesError: the folder cannot be written.
        """
        with storage_errors(self.folder):
            remove(self._table, paths)

    def forget_below(self, folder: str) -> int:
        """Removes the rows of what lies in a folder, given in text form; says how many there were.

        Raises:
            PicturesError: the folder cannot be written.
        """
        condition = below_condition(folder)
        with storage_errors(self.folder):
            count = self._table.count_rows(condition)
            if count:
                self._table.delete(condition)
        return count

    def upgrade(self) -> None:
        """Fills in what a table lacks that an older version wrote; the writer's lock is held.

        Raises:
            PicturesError: the folder cannot be written.
        """
        with storage_errors(self.folder):
            if self.is_of_older_version:
                known = set(self.schema.names)
                self._table.add_columns([field for field in ADDED if field.name not in known])
            # Also what was interrupted here.
            missing = self._table.search().where("folded_path IS NULL").select(["path"]).to_arrow()["path"]
            if len(missing):
                texts = pa.array([folded(path) for path in missing.to_pylist()])
                filled = pa.table({"path": missing, "folded_path": texts})
                self._table.merge_insert("path").when_matched_update_all().execute(filled)
                # An ANN index knows none of these rows any more.
                self.maintain()

    def maintain(self) -> None:
        """Joins small fragments and brings the ANN index up to date; builds one if there are rows enough.

        Raises:
            PicturesError: the folder cannot be written.
        """
        with storage_errors(self.folder):
            # Joined first: an index that is there already would have to follow the rows to their new places.
            self._table.optimize(cleanup_older_than=KEPT_VERSIONS)
            if len(self) >= ann.ANN_ROWS:
                ann.build_indices(self._table)


def open_table(folder: Path) -> PictureTable:
    """Opens the table of a folder; what other processes add is seen at once.

    Raises:
        PicturesError: there is none, or it cannot be read.
    """
    if not (folder / f"{NAME}.lance" / "_versions").is_dir():
        raise PicturesError(
            f"{printable(str(folder))}: no pictures are indexed here; index some: make index IMAGES=folder"
        )
    with storage_errors(folder, "read"):
        return PictureTable(folder, connect(folder).open_table(NAME))


def open_or_create_table(folder: Path, space_id: str, model: str, embedding_dim: int) -> PictureTable:
    """Opens the table of a folder, or makes an empty one for an embedding space; for a writer.

    Raises:
        PicturesError: the folder cannot be read or written.
    """
    if (folder / f"{NAME}.lance" / "_versions").is_dir():
        table = open_table(folder)
        table.upgrade()
        return table
    schema = picture_schema(space_id, model, embedding_dim)
    with storage_errors(folder):
        return PictureTable(folder, connect(folder).create_table(NAME, schema=schema))


def replace_table(folder: Path, space_id: str, model: str, embedding_dim: int) -> PictureTable:
    """Begins the table of a folder anew, empty, for another embedding space; in one step.

    Raises:
        PicturesError: the folder cannot be written.
    """
    schema = picture_schema(space_id, model, embedding_dim)
    with storage_errors(folder):
        return PictureTable(folder, connect(folder).create_table(NAME, schema=schema, mode="overwrite"))
