"""The table as documents for the `_bulk` API of OpenSearch or Elasticsearch, with the mapping they need.

A folder with `mapping.json`, the body of the request that creates the index, and `00001.ndjson` and on, each
the body of one request to `_bulk`. A document is a row of the table; its id is the SHA-256 of its path, so
that loading a row again replaces it (the engines take ids of 512 bytes at most, and paths may be longer).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from clipserve.folders import publish, staged
from pictures.paths import printable
from pictures.table import PictureTable
from search.errors import SearchError

ENGINES = ("elasticsearch", "opensearch")

MAPPING = "mapping.json"
# Of a request, with which this module names its files.
BODY = re.compile(r"\d{5,}\.ndjson")

# Of a request. Both engines refuse more than 100 MB unless told otherwise, and some that are rented 10 MiB.
MAX_BYTES = 10_000_000

# Of the table, in memory at once: 2 MB of 512-d embeddings, 6 MB of them as text.
ROWS = 1024

COLUMNS = ("path", "size", "mtime_ns", "sha256", "space_id", "embedding")
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def write_bulk_lines(table: PictureTable, engine: str, output: Path) -> tuple[int, int]:
    """Writes all rows of a table for one of `ENGINES`; the folder is there as a whole or not at all.

    Args:
        table: as it is now; few of its rows are in memory at once.
        engine: of `ENGINES`.
        output: the folder; what this function wrote there before is replaced.

    Returns:
        How many documents, in how many requests.

    Raises:
        SearchError: the table is empty, is not of one space or holds what no engine takes, or the folder
            holds something else.
        PicturesError: the table cannot be read.
        OSError: the folder cannot be written.
    """
    _require_own(output)
    documents = requests = 0
    with staged(output.parent) as work:
        made = work / "made"
        made.mkdir()
        body = json.dumps(index_body(table, engine), indent=2) + "\n"
        (made / MAPPING).write_text(body, encoding="utf-8")
        with tqdm(total=len(table), unit=" pictures", disable=None) as bar:
            for request in _requests(_documents(table)):
                documents, requests = documents + len(request), requests + 1
                (made / f"{requests:05}.ndjson").write_bytes(b"".join(request))
                bar.update(len(request))
        if not documents:
            raise SearchError(
                f"{printable(str(table.folder))}: the table is empty; index some: make index IMAGES=folder"
            )
        publish(made, output)
    return documents, requests


def index_body(table: PictureTable, engine: str) -> dict[str, Any]:
    """The body of the request that creates the index: settings, fields, and what the vectors are, in `_meta`.

    Cosine, since the embeddings of a table need not have length 1. A document of another space is refused by
    the engine itself: its `space_id` is not the constant one.
    """
    vector: dict[str, Any]
    if engine == "elasticsearch":
        vector = {"type": "dense_vector", "dims": table.embedding_dim, "index": True, "similarity": "cosine"}
        # Its default for 384 dimensions and more keeps one bit of each: see docs/search.md.
        vector["index_options"] = {"type": "int8_hnsw"}
    else:
        # faiss, its default, has had cosine since 2.19 only.
        method = {"name": "hnsw", "engine": "lucene", "space_type": "cosinesimil"}
        vector = {"type": "knn_vector", "dimension": table.embedding_dim, "method": method}
    fields = {
        "path": {"type": "keyword"},
        "size": {"type": "long"},
        "modified": {"type": "date"},
        "sha256": {"type": "keyword"},
        "space_id": {"type": "constant_keyword", "value": table.space_id},
        "embedding": vector,
    }
    meta = {"space_id": table.space_id, "model_id": table.model, "dims": table.embedding_dim}
    mapping = {"mappings": {"_meta": meta, "properties": fields}}
    return mapping if engine == "elasticsearch" else {"settings": {"index": {"knn": True}}, **mapping}


def _require_own(output: Path) -> None:
    """Lets nothing be replaced but what this module wrote."""
    if not output.exists():
        return
    names = {path.name for path in output.iterdir()} if output.is_dir() else {""}
    others = sorted(name for name in names - {MAPPING} if not BODY.fullmatch(name))
    if others:
        raise SearchError(
            f"{printable(str(output))}: holds something else than lines for _bulk "
            f"({printable(others[0]) or 'it is a file'}); name another folder: make bulk-lines OUTPUT=folder"
        )


def _requests(documents: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Documents, as many as may go into one request."""
    request: list[bytes] = []
    size = 0
    for document in documents:
        if request and size + len(document) > MAX_BYTES:
            yield request
            request, size = [], 0
        request.append(document)
        size += len(document)
    if request:
        yield request


def _documents(table: PictureTable) -> Iterator[bytes]:
    """Two lines for each row: what to do, and the document."""
    for batch in table.batches(COLUMNS, ROWS):
        columns = [batch.column(name).to_pylist() for name in COLUMNS[:-1]]
        embeddings = _as_text(table, batch)
        for path, size, mtime_ns, sha256, space_id, embedding in zip(*columns, embeddings, strict=True):
            modified = EPOCH + datetime.timedelta(microseconds=mtime_ns // 1000)
            document = {
                "path": path,
                "size": size,
                "modified": modified.isoformat(timespec="milliseconds"),
                "sha256": sha256,
                "space_id": space_id,
            }
            action = json.dumps({"index": {"_id": hashlib.sha256(path.encode()).hexdigest()}})
            # The embedding is text already: json has no float32, and would write nine digits more.
            source = f'{json.dumps(document, ensure_ascii=False)[:-1]}, "embedding": [{embedding}]}}'
            yield f"{action}\n{source}\n".encode()


def _as_text(table: PictureTable, batch: pa.RecordBatch) -> list[str]:
    """The embedding of each row as JSON has numbers, in the fewest digits that read back to the same float32.

    Raises:
        SearchError: one is no direction, or of another space than the table.
    """
    embeddings = batch.column("embedding")
    values = embeddings.flatten().to_numpy(zero_copy_only=False).reshape(len(embeddings), -1)
    is_direction = np.isfinite(values).all(axis=1) & values.any(axis=1)
    is_of_table = pc.equal(batch.column("space_id"), table.space_id).to_numpy(zero_copy_only=False)
    if not (is_direction & is_of_table).all():
        row = int(np.argmin(is_direction & is_of_table))
        path = printable(batch.column("path")[row].as_py())
        what = "is all zeros or not finite" if is_of_table[row] else "is of another space than the table"
        raise SearchError(
            f"{printable(str(table.folder))}: the embedding of {path} {what}; take it out "
            "(make index FORGET=folder) and index it again"
        )
    texts = pc.cast(embeddings.flatten(), pa.string())
    # As a number of JSON, -0 is an integer, which has no sign.
    texts = pc.if_else(pc.equal(texts, "-0"), "-0.0", texts)
    starts = pa.array(np.arange(len(embeddings) + 1) * table.embedding_dim, pa.int32())
    joined: list[str] = pc.binary_join(pa.ListArray.from_arrays(starts, texts), ",").to_pylist()
    return joined
