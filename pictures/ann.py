"""How embeddings are searched: all of them in a small table, through an ANN index in a large one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import lancedb
from lancedb.index import BTree, IvfRq
from lancedb.query import LanceVectorQueryBuilder

from clipserve.encoder_spec import FloatArray

# Below this many rows an exact search takes less than about a quarter of a second.
ANN_ROWS = 100_000
INDEX = "embedding_idx"

# RaBitQ codes of 5 bits a dimension, and the best 5 x limit rows compared exactly: finds every one of the ten
# nearest among 100,000 vectors without structure (1 bit: 0.40, 3 bits: 0.99); see docs/search.md.
CODE_BITS = 5
REFINE = 5
# Of the partitions, of about 4,000 rows each: all of them up to a million rows. Fewer find less (50 of 250:
# 0.62 of the ten nearest) and gain little, since codes are compared so fast.
PROBES = 250


def has_index(table: lancedb.table.Table) -> bool:
    """Whether searches of a table go through an ANN index."""
    return any(index.name == INDEX for index in table.list_indices())


def build_indices(table: lancedb.table.Table) -> None:
    """Builds the ANN index and those of the columns that copies are looked up by, where they are missing."""
    if not has_index(table):
        config = IvfRq(distance_type="cosine", num_bits=CODE_BITS)
        table.create_index("embedding", config=config, name=INDEX)
    indexed = {column for index in table.list_indices() for column in index.columns}
    for column in ("path", "sha256"):
        if column not in indexed:
            table.create_index(column, config=BTree())


def nearest(
    table: lancedb.table.Table,
    embedding: FloatArray,
    limit: int,
    columns: Sequence[str],
    condition: str | None,
    exact: bool,
) -> list[dict[str, Any]]:
    """Columns of the rows nearest to an embedding, with `_distance`: 1 less the cosine similarity.

    Args:
        table: with a column `embedding`.
        embedding: float32 `[D]`.
        limit: at most this many.
        columns: of each row.
        condition: SQL that a row must fulfil.
        exact: compare with every row even where there is an index.
    """
    # Of its many return types, the one of a vector.
    search = cast(LanceVectorQueryBuilder, table.search(embedding, vector_column_name="embedding"))
    query = search.distance_type("cosine").select([*columns, "_distance"]).limit(limit)
    if condition is not None:
        query = query.where(condition, prefilter=True)
    if exact:
        query = query.bypass_vector_index()
    elif has_index(table):
        query = query.nprobes(PROBES).refine_factor(REFINE)
    rows: list[dict[str, Any]] = query.to_arrow().to_pylist()
    return rows
