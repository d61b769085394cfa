"""The shards of a job: written once, then read by every task, on whichever node."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from pictures.paths import path_to_text, printable, text_to_path
from scale.bulk.errors import BulkError
from scale.bulk.sources import Kind, Picture, Source

PLAN = "plan.arrow"
SHARDS = "shards"

_COLUMNS = [
    pa.field("path", pa.string(), nullable=False),
    pa.field("location", pa.binary(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),
    pa.field("size", pa.int64(), nullable=False),
    pa.field("mtime_ns", pa.int64(), nullable=False),
]


@dataclass(frozen=True)
class Plan:
    """An Arrow file in which record batch i names the pictures of shard i.

    Attributes:
        job: folder of the job, which holds the plan and what becomes of its shards.
        source: where the pictures are.
        schema: of the rows to be written.
        shard_size: pictures of every shard but the last.
        shards: how many.
        pictures: how many, in all shards.
    """

    job: Path
    source: Source
    schema: pa.Schema
    shard_size: int
    shards: int
    pictures: int

    def shard(self, number: int) -> list[Picture]:
        """The pictures of a shard."""
        with pa.memory_map(str(self.job / PLAN)) as file, pa.ipc.open_file(file) as reader:
            columns = reader.get_batch(number).to_pydict()
        return [Picture(*values) for values in zip(*(columns[f.name] for f in _COLUMNS), strict=True)]

    def shard_pictures(self, number: int) -> int:
        """How many pictures a shard has."""
        return min(self.shard_size, self.pictures - number * self.shard_size)

    def output(self, number: int) -> Path:
        """The file that a shard becomes."""
        return self.job / SHARDS / f"{number:08d}.arrow"

    def forget(self) -> None:
        """Removes the job: the plan first, since shards without one are of no job."""
        (self.job / PLAN).unlink()
        shutil.rmtree(self.job)

    def is_done(self, number: int) -> bool:
        """Whether a shard has become its file."""
        return self.output(number).exists()


def write_plan(
    job: Path, source: Source, schema: pa.Schema, shard_size: int, pictures: Iterable[Picture]
) -> Plan | None:
    """Writes a plan as a whole, or not at all.

    Args:
        job: folder of the job; made where it is missing.
        source: where the pictures are.
        schema: of the rows to be written.
        shard_size: pictures of a shard.
        pictures: in the order in which they are cut into shards.

    Returns:
        None where there are no pictures; no plan is written then.
    """
    if job.exists():
        # What a job left that ended while it was being removed.
        shutil.rmtree(job)
    (job / SHARDS).mkdir(parents=True)
    described = {
        "kind": source.kind,
        "root": path_to_text(bytes(source.root)),
        "column": source.column or "",
        "exclude": json.dumps(source.exclude),
        "shard_size": str(shard_size),
        "schema": schema.serialize().to_pybytes(),
    }
    rest = iter(pictures)
    temporary = job / f".{PLAN}"
    shards = count = 0
    with (
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, pa.schema(_COLUMNS, metadata=described)) as writer,
    ):
        while part := list(islice(rest, shard_size)):
            columns = [list(column) for column in zip(*part, strict=True)]
            writer.write_batch(pa.record_batch(columns, schema=pa.schema(_COLUMNS)))
            shards += 1
            count += len(part)
    if not count:
        shutil.rmtree(job)
        return None
    temporary.replace(job / PLAN)
    return Plan(job, source, schema, shard_size, shards, count)


def open_plan(job: Path) -> Plan | None:
    """The plan of a job that was begun, None where there is none.

    Raises:
        BulkError: it is damaged.
    """
    if not (job / PLAN).exists():
        return None
    try:
        with pa.memory_map(str(job / PLAN)) as file, pa.ipc.open_file(file) as reader:
            said = {key.decode(): value for key, value in reader.schema.metadata.items()}
            kind: Kind = said["kind"].decode()
            root = Path(text_to_path(said["root"].decode()).decode("utf-8", "surrogateescape"))
            exclude = tuple(json.loads(said["exclude"]))
            shards, shard_size = reader.num_record_batches, int(said["shard_size"])
            last = reader.get_batch(shards - 1).num_rows
            schema = pa.ipc.read_schema(pa.py_buffer(said["schema"]))
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise BulkError(
            f"{printable(str(job / PLAN))}: damaged ({error}); remove the folder {printable(str(job))}, "
            "the job then begins anew"
        ) from error
    source = Source(kind, root, said["column"].decode() or None, exclude)
    return Plan(job, source, schema, shard_size, shards, (shards - 1) * shard_size + last)
