"""Takes what the shards became into the table: checks every count first, then writes once.

Everything here may be repeated: what an earlier commit brought into the table is recognised by its path,
size, time and SHA-256, and left alone. The caller holds the table's writer lock since before it read `known`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from pictures.paths import printable
from pictures.rows import FileState
from pictures.table import PictureTable
from scale.bulk.error_table import ErrorTable
from scale.bulk.errors import BulkError
from scale.bulk.plan import Plan
from scale.bulk.sources import Failure
from scale.bulk.stages import LEDGER

# Rows that are replaced in one step; all of them are in memory at once (about 10 kB each).
REPLACED_ROWS = 10_000


@dataclass
class Committed:
    """What a commit did.

    Attributes:
        added: rows of new paths.
        replaced: rows of paths whose files were others before.
        present: rows that were there already, from a commit whose process died before it could say so.
        failures: pictures that went to the errors table.
    """

    added: int = 0
    replaced: int = 0
    present: int = 0
    failures: list[Failure] = field(default_factory=list)


def commit(
    plan: Plan,
    table: PictureTable,
    errors: ErrorTable,
    known: Mapping[str, FileState],
    failed: Mapping[str, Failure],
) -> Committed:
    """Brings all shards of a plan into the table.

    Args:
        plan: whose shards are all done.
        table: to write to.
        errors: to write to.
        known: every row of `table`.
        failed: every row of `errors`.

    Raises:
        BulkError: pictures in and embeddings plus errors out are not the same; nothing is written then. Or
            the table does not hold what it should afterwards.
        PicturesError: the table cannot be written.
    """
    before = len(table)
    result = Committed()
    replacing: list[int] = []
    resolved: list[str] = []
    for number in range(plan.shards):
        counts = _reconcile(plan, number, known, result)
        if counts.replaced:
            replacing.append(number)
        result.added += counts.added
        result.replaced += counts.replaced
        result.present += counts.present
        resolved += [path for path in counts.paths if path in failed]
    errors.put(result.failures)
    if result.added:
        table.add_stream(_new_rows(plan, known))
    for rows in _changed_rows(plan, replacing, known):
        table.replace(rows)
    outdated = [failure.path for failure in result.failures if failure.path in known]
    table.remove(outdated)
    errors.forget(resolved)
    after = len(table)
    if after != before + result.added - len(outdated):
        raise BulkError(
            f"{printable(str(table.folder))}: {after} rows, should be {before} + {result.added} new - "
            f"{len(outdated)} removed; something else wrote to this table"
        )
    return result


@dataclass
class _Shard:
    added: int
    replaced: int
    present: int
    paths: list[str]


def _reconcile(plan: Plan, number: int, known: Mapping[str, FileState], result: Committed) -> _Shard:
    """Compares a shard's pictures with its rows and failures, path by path."""
    rows, failures = read_output(plan, number)
    planned = sorted(picture.path for picture in plan.shard(number))
    paths = rows["path"].to_pylist()
    if planned != sorted([*paths, *(failure.path for failure in failures)]):
        raise BulkError(
            f"{printable(str(plan.output(number)))}: {rows.num_rows} embeddings and {len(failures)} errors "
            f"for {len(planned)} pictures, or of other pictures; remove this file and run the job again"
        )
    result.failures += failures
    new, changed = (sum(_mask(rows, known, kind)) for kind in ("new", "changed"))
    return _Shard(new, changed, rows.num_rows - new - changed, paths)


def read_output(plan: Plan, number: int) -> tuple[pa.Table, list[Failure]]:
    """The rows and failures of a shard's file.

    Raises:
        BulkError: it is damaged.
    """
    path = plan.output(number)
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            rows = reader.read_all()
        failures = [Failure(**failure) for failure in json.loads(rows.schema.metadata[LEDGER])]
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise BulkError(
            f"{printable(str(path))}: damaged ({error}); remove this file and run the job again"
        ) from error
    return rows, failures


def _mask(rows: pa.Table, known: Mapping[str, FileState], kind: str) -> list[bool]:
    """Which rows are of new paths, or of paths that the table has in another state."""
    mask = []
    names = ("path", "size", "mtime_ns", "sha256")
    for path, *state in zip(*(rows[name].to_pylist() for name in names), strict=True):
        there = known.get(path)
        if kind == "new":
            mask.append(there is None)
        else:
            mask.append(there is not None and [there.size, there.mtime_ns, there.sha256] != state)
    return mask


def _new_rows(plan: Plan, known: Mapping[str, FileState]) -> Iterator[pa.RecordBatch]:
    for number in range(plan.shards):
        rows, _ = read_output(plan, number)
        new = rows.filter(pa.array(_mask(rows, known, "new"), pa.bool_()))
        yield from new.replace_schema_metadata(plan.schema.metadata).to_batches()


def _changed_rows(plan: Plan, numbers: list[int], known: Mapping[str, FileState]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for number in numbers:
        rows, _ = read_output(plan, number)
        changed = rows.filter(pa.array(_mask(rows, known, "changed"), pa.bool_()))
        waiting.append(changed.replace_schema_metadata(plan.schema.metadata))
        if sum(table.num_rows for table in waiting) >= REPLACED_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
