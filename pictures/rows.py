"""The rows of the table, as Arrow has them: for whoever makes rows and has no table to write them to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from clipserve.encoder_spec import FloatArray
from pictures.facts import COLUMNS, UNKNOWN, Facts
from pictures.paths import folded

# A file changed this recently before it was read may have changed again without its time telling so.
RACY_NS = 2_000_000_000

# What `pictures.paths.path_condition` looks at. Nullable, as a column must be that is added to rows.
FOLDED_PATH = pa.field("folded_path", pa.string())

# Columns that tables of older versions lack.
ADDED = (FOLDED_PATH, *COLUMNS)


class FileState(NamedTuple):
    """What a file was when it was read: bytes, time of its last change, SHA-256; and when that was."""

    size: int
    mtime_ns: int
    sha256: str
    indexed_ns: int

    def is_of(self, size: int, mtime_ns: int) -> bool:
        """Whether a file of this size and time is surely the one that was read."""
        return (self.size, self.mtime_ns) == (size, mtime_ns) and mtime_ns + RACY_NS < self.indexed_ns


@dataclass(frozen=True)
class Row:
    """An indexed picture.

    Attributes:
        path: in text form, see `pictures.paths`.
        state: of the file.
        embedding: float32 `[D]`.
        thumbnail: a small JPEG.
        facts: what the file says of itself.
    """

    path: str
    state: FileState
    embedding: FloatArray
    thumbnail: bytes
    facts: Facts = UNKNOWN


def picture_schema(space_id: str, model: str, embedding_dim: int) -> pa.Schema:
    """The schema of a table of pictures of one embedding space."""
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("mtime_ns", pa.int64(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("space_id", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), embedding_dim), nullable=False),
            pa.field("thumbnail", pa.binary(), nullable=False),
            pa.field("indexed_ns", pa.int64(), nullable=False),
            *ADDED,
        ],
        metadata={"space_id": space_id, "model": model},
    )


def picture_batch(
    schema: pa.Schema,
    paths: Sequence[str],
    states: Sequence[FileState],
    embeddings: FloatArray,
    thumbnails: Sequence[bytes],
    facts: Sequence[Facts],
) -> pa.Table:
    """Rows for a table of `schema`; `embeddings` are float32 `[N, D]`, everything else has length N."""
    columns: dict[str, Any] = {name: [getattr(state, name) for state in states] for name in FileState._fields}
    columns |= {field.name: [getattr(of, field.name) for of in facts] for field in COLUMNS}
    columns["path"] = paths
    columns["folded_path"] = [folded(path) for path in paths]
    columns["thumbnail"] = thumbnails
    columns["space_id"] = [schema.metadata[b"space_id"].decode()] * len(paths)
    flat = pa.array(np.ascontiguousarray(embeddings, np.float32).ravel())
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, schema.field("embedding").type.list_size)
    return pa.table(columns, schema=schema)


def row_batch(schema: pa.Schema, rows: Sequence[Row]) -> pa.Table:
    """As `picture_batch`, of rows one by one."""
    return picture_batch(
        schema,
        [row.path for row in rows],
        [row.state for row in rows],
        np.stack([row.embedding for row in rows]),
        [row.thumbnail for row in rows],
        [row.facts for row in rows],
    )
