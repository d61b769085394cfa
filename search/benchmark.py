"""Measures search on synthetic embeddings: `python -m search.benchmark --rows 100000`.

Two kinds. *clustered* is like a photo collection: 2,000 subjects, variations in 64 directions around each, a
common offset as CLIP has it. *uniform* has no structure at all, the hardest case for any index.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from clipserve.command import run_command
from clipserve.encoder_spec import FloatArray
from clipserve.similarity import unit_vectors
from pictures.ann import ANN_ROWS
from pictures.reader import RECALL_AT
from pictures.rows import FileState, Row
from pictures.table import PictureTable, open_or_create_table

# A list; `make figures` writes it into docs/search.md.
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "search.json"

EMBEDDING_DIM = 512
BATCH = 10_000
QUERIES = 100
EXACT_QUERIES = 20  # an exact search of a million rows takes seconds

Generate = Callable[[int], FloatArray]


def clustered(random: np.random.Generator) -> Generate:
    """Gives functions of a count that draw from one mixture."""
    subjects = random.standard_normal((2000, EMBEDDING_DIM), np.float32)
    directions = random.standard_normal((64, EMBEDDING_DIM), np.float32) / 8
    offset = random.standard_normal(EMBEDDING_DIM, np.float32)

    def draw(count: int) -> FloatArray:
        which = random.integers(0, len(subjects), count)
        variation = random.standard_normal((count, len(directions)), np.float32) @ directions
        noise = random.standard_normal((count, EMBEDDING_DIM), np.float32)
        return unit_vectors(offset + 0.5 * subjects[which] + 0.8 * variation + 0.3 * noise)

    return draw


def uniform(random: np.random.Generator) -> Generate:
    """Gives functions of a count that draw evenly from the sphere."""
    return lambda count: unit_vectors(random.standard_normal((count, EMBEDDING_DIM), np.float32))


KINDS: dict[str, Callable[[np.random.Generator], Generate]] = {"clustered": clustered, "uniform": uniform}


def measure(folder: Path, rows: int, kind: str) -> dict[str, object]:
    """Fills a table and searches it; times are the medians of single queries, one after the other."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    draw = KINDS[kind](np.random.default_rng(0))
    table = open_or_create_table(folder, "synthetic", "synthetic", EMBEDDING_DIM)
    start = time.perf_counter()
    for first in range(0, rows, BATCH):
        table.write(_rows(draw(min(BATCH, rows - first)), first), [])
    insert = time.perf_counter() - start
    queries = draw(QUERIES)
    exact = _milliseconds(table, queries[:EXACT_QUERIES], exact=True)
    start = time.perf_counter()
    table.maintain()
    build = time.perf_counter() - start
    _milliseconds(table, queries[:10], exact=False)
    times = _milliseconds(table, queries, exact=False)
    return {
        "rows": rows,
        "kind": kind,
        "index": table.has_index,
        "inserted_rows_per_second": round(rows / insert),
        "index_and_compaction_seconds": round(build, 1),
        "exact_p50_ms": round(float(np.median(exact)), 1),
        "p50_ms": round(float(np.median(times)), 1),
        "p95_ms": round(float(np.quantile(times, 0.95)), 1),
        f"recall@{RECALL_AT}": round(table.recall(queries[:EXACT_QUERIES]), 3),
        "table_mb": _megabytes(folder),
        "index_mb": _megabytes(folder / "pictures.lance" / "_indices"),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _rows(embeddings: FloatArray, first: int) -> list[Row]:
    return [
        Row(f"/synthetic/{i:09d}.jpg", FileState(1, 0, f"{i:064x}", 0), embedding, b"")
        for i, embedding in enumerate(embeddings, start=first)
    ]


def _milliseconds(table: PictureTable, queries: FloatArray, *, exact: bool) -> list[float]:
    times = []
    for query in queries:
        start = time.perf_counter()
        table.nearest(query, RECALL_AT, exact=exact)
        times.append(1000 * (time.perf_counter() - start))
    return times


def _megabytes(folder: Path) -> int:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6)


def keep(measured: dict[str, object], results: Path) -> None:
    """Puts what was measured in the place of what was measured before of as many rows of the same kind."""
    found: list[dict[str, object]] = json.loads(results.read_text(encoding="utf-8"))
    places = {(of["rows"], of["kind"]): of for of in [*found, measured]}
    results.write_text(json.dumps(list(places.values()), indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; prints what was measured as a JSON object, and keeps it; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m search.benchmark", description=__doc__)
    parser.add_argument("--rows", type=int, default=ANN_ROWS)
    parser.add_argument("--kind", choices=list(KINDS), default="clustered")
    parser.add_argument("--folder", type=Path, default=Path(".bench/search"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="the JSON file that keeps it")
    arguments = parser.parse_args(argv)

    def work() -> None:
        measured = measure(arguments.folder, arguments.rows, arguments.kind)
        print(json.dumps(measured, indent=2))
        keep(measured, arguments.results)

    return run_command("search benchmark", work)


if __name__ == "__main__":
    sys.exit(main())
