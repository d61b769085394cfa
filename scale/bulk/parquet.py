"""Pictures in a column of Parquet: which column it is, whether its rows can be pictures, and their bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

# Rows of Parquet that are in memory at once: each holds up to `pictures.files.MAX_BYTES`, however small its
# file. One value that stands for many rows is written once, and read once for each.
PARQUET_BATCH = 4
PARQUET_BUFFER = 1_000_000  # bytes; without one, a row group is read as a whole

# Encoded pictures hardly shrink any further: what unpacks to more than so many times its size, and more than
# so many bytes, holds none.
MAX_UNPACKING = 20
UNPACKED_BYTES = 64_000_000


def bytes_column(schema: pa.Schema, wanted: str | None) -> str:
    """The column of bytes in the form that `columns=` takes: `image`, or `image.bytes` in a struct.

    Raises:
        ValueError: there is no such column, or several and none is named.
    """
    found: dict[str, str] = {}
    for field in schema:
        if _is_bytes(field.type):
            found[field.name] = field.name
        elif pa.types.is_struct(field.type) and _is_bytes_struct(field.type):
            found[field.name] = f"{field.name}.bytes"
    if wanted is not None and wanted in found:
        return found[wanted]
    if wanted is None and len(found) == 1:
        return next(iter(found.values()))
    there = ", ".join(found) or "none"
    asked = f"no column of bytes named {wanted!r}" if wanted else "not exactly one column of bytes"
    raise ValueError(f"{asked}, there are: {there}; name one with --column")


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_bytes_struct(kind: pa.StructType) -> bool:
    return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)


def check_parquet(file: pq.ParquetFile, column: str, file_bytes: int) -> None:
    """Looks at what a file says of its rows.

    Raises:
        ValueError: it holds more rows than bytes, or unpacks to many times its size.
    """
    metadata = file.metadata
    if metadata.num_rows > file_bytes:
        raise ValueError(f"{metadata.num_rows} rows in a file of {file_bytes} bytes: they cannot be pictures")
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            chunk = row_group.column(number)
            packed, unpacked = chunk.total_compressed_size, chunk.total_uncompressed_size
            # The name of a column of lists goes on.
            if chunk.path_in_schema.startswith(column) and unpacked > MAX_UNPACKING * packed + UNPACKED_BYTES:
                raise ValueError(f"{packed} bytes in it unpack to {unpacked}: they cannot be pictures")


def parquet_values(file: pq.ParquetFile, column: str, rows: Iterable[int]) -> Iterator[bytes | None]:
    """The bytes of ascending rows; `PARQUET_BATCH` rows are in memory at a time."""
    wanted = iter(rows)
    row = next(wanted, None)
    start = 0
    for group in range(file.metadata.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        if row is not None and row < end:
            first = start
            for batch in file.iter_batches(PARQUET_BATCH, row_groups=[group], columns=[column]):
                values = pa.Table.from_batches([batch]).flatten().column(0)
                while row is not None and row < first + len(values):
                    yield values[row - first].as_py()
                    row = next(wanted, None)
                first += len(values)
                if row is None or row >= end:
                    break
        start = end
