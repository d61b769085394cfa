"""What is read of the table: rows by name, and the nearest ones.

Every search is by cosine (`pictures.ann`); LanceDB's own default is L2, in searches and every kind of index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipserve.encoder_spec import FloatArray
from pictures import ann, places
from pictures.errors import PicturesError
from pictures.facts import COLUMNS, Facts
from pictures.paths import printable, sql_text
from pictures.rows import ADDED, FileState
from pictures.storage import all_of, naming, storage_errors

RECALL_AT = 10


@dataclass(frozen=True)
class Hit:
    """A picture that was found.

    Attributes:
        path: in text form, see `pictures.paths`.
        sha256: of the file's bytes.
        score: cosine similarity with the query, -1 to 1.
        copies: paths of equal files, sorted; of `nearest_contents` only.
    """

    path: str
    sha256: str
    score: float
    copies: tuple[str, ...] = ()


class PictureReader:
    """The reading half of `pictures.table.PictureTable`."""

    def __init__(self, folder: Path, table: lancedb.table.Table):
        self.folder = folder
        self._table = table

    @property
    def schema(self) -> pa.Schema:
        """Columns, with `space_id` and `model` in the metadata."""
        return self._table.schema

    @property
    def space_id(self) -> str:
        """The embedding space that every row is in."""
        return self._metadata("space_id")

    @property
    def model(self) -> str:
        """Name of the encoder pair that the table was made with."""
        return self._metadata("model")

    @property
    def embedding_dim(self) -> int:
        """Length of the embeddings."""
        return int(self._table.schema.field("embedding").type.list_size)

    @property
    def version(self) -> int:
        """Changes with every write."""
        return int(self._table.version)

    def require_space(self, space_id: str, who: str, remedy: str) -> None:
        """Refuses embeddings that cannot be compared with those of the table.

        Args:
            space_id: of the other embeddings.
            who: makes them.
            remedy: what to do about it.

        Raises:
            PicturesError: they are of another embedding space.
        """
        if space_id != self.space_id:
            raise PicturesError(
                f"{printable(str(self.folder))}: its pictures were embedded by {self.model!r} in space "
                f"{self.space_id[:12]}, {who} embeds in space {space_id[:12]} (of another encoder pair, or "
                "exported by a version that tells spaces apart by more), and the two cannot be compared; "
                f"{remedy}"
            )

    def _metadata(self, name: str) -> str:
        return str((self._table.schema.metadata or {})[name.encode()].decode())

    def __len__(self) -> int:
        return self._table.count_rows()

    @property
    def is_of_older_version(self) -> bool:
        """Whether there are columns missing that `pictures.filters` looks at; its next writer adds them."""
        return not {field.name for field in ADDED} <= set(self.schema.names)

    def facts(self, paths: Iterable[str]) -> dict[str, Facts]:
        """What the files of some paths say of themselves; nothing in a table of an older version."""
        if self.is_of_older_version:
            return {}
        names = [field.name for field in COLUMNS]
        found = {}
        for rows in self._named(paths, ["path", *names]):
            for row in rows.to_pylist():
                found[row["path"]] = Facts(*(row[name] for name in names))
        return found

    def without_facts(self) -> set[str]:
        """Paths of rows whose files have to be looked at for what they say of themselves."""
        missing = "width IS NULL"
        if places.are_known():
            missing += " OR (latitude IS NOT NULL AND place IS NULL)"
        return set(self._table.search().where(missing).select(["path"]).to_arrow()["path"].to_pylist())

    def cameras(self) -> list[str]:
        """All cameras that pictures were taken with, sorted."""
        if self.is_of_older_version:
            return []
        rows = self._table.search().where("camera IS NOT NULL").select(["camera"]).to_arrow()
        return sorted(rows["camera"].unique().to_pylist())

    def batches(self, columns: Sequence[str], rows: int | None = None) -> Iterator[pa.RecordBatch]:
        """Columns of every row, at most so many `rows` at a time; all of one version of the table.

        Raises:
            PicturesError: the table cannot be read.
        """
        with storage_errors(self.folder, "read"):
            yield from self._table.search().select([*columns]).to_batches(rows)

    def states(self, paths: Iterable[str] | None = None) -> dict[str, FileState]:
        """The state of every file, or of those of some paths that have a row, by path."""
        columns = ["path", *FileState._fields]
        states: dict[str, FileState] = {}
        for batch in self.batches(columns) if paths is None else self._named(paths, columns):
            values = [batch[name].to_pylist() for name in columns]
            states |= {path: FileState(*state) for path, *state in zip(*values, strict=True)}
        return states

    def state(self, path: str) -> FileState | None:
        """The state of one file, None where it has no row."""
        return self.states([path]).get(path)

    def _named(self, paths: Iterable[str], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of the rows of some paths."""
        for named in naming("path", paths):
            yield self._table.search().where(named).select([*columns]).to_arrow()

    def paths(self, hashes: Iterable[str]) -> tuple[str, ...]:
        """Paths of all files of some contents, sorted."""
        return tuple(sorted(path for paths in self._files([*hashes], None).values() for path in paths))

    def by_hash(self, hashes: Iterable[str]) -> dict[str, tuple[FloatArray, bytes]]:
        """Embedding and thumbnail of contents that are in the table."""
        found = {}
        for condition in naming("sha256", hashes):
            query = self._table.search().where(condition).select(["sha256", "embedding", "thumbnail"])
            for row in query.to_arrow().to_pylist():
                found[row["sha256"]] = (np.array(row["embedding"], np.float32), row["thumbnail"])
        return found

    def embeddings(self) -> tuple[list[str], FloatArray]:
        """SHA-256 and embedding, float32 `[N, D]`, of every contents once."""
        rows: dict[str, FloatArray] = {}
        for batch in self.batches(["sha256", "embedding"]):
            vectors = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
            hashes = batch.column("sha256").to_pylist()
            rows |= zip(hashes, vectors.reshape(len(hashes), -1), strict=True)
        return list(rows), np.array([*rows.values()], np.float32).reshape(len(rows), self.embedding_dim)

    @property
    def has_index(self) -> bool:
        """Whether searches go through an ANN index."""
        return ann.has_index(self._table)

    def recall(self, queries: FloatArray) -> float:
        """Of the exact nearest `RECALL_AT` rows, the part that a search through the index finds."""
        found = 0
        for query in queries:
            exact, near = (
                {hit.path for hit in self.nearest(query, RECALL_AT, exact=exact)} for exact in (True, False)
            )
            found += len(exact & near)
        return found / (RECALL_AT * len(queries))

    def sample(self, count: int, seed: int = 0) -> FloatArray:
        """Embeddings of rows taken at random, of all rows where there are fewer: float32 `[count, D]`."""
        rows = np.random.default_rng(seed).choice(len(self), min(count, len(self)), replace=False)
        if not len(rows):
            return np.zeros((0, self.embedding_dim), np.float32)
        taken = self._table.take_offsets(sorted(rows.tolist())).select(["embedding"]).to_arrow()
        flat = taken["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat, np.float32).reshape(-1, self.embedding_dim)

    def nearest(
        self,
        embedding: FloatArray,
        limit: int,
        *,
        condition: str | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """The rows of the highest cosine similarity, highest first, equals by path.

        Args:
            embedding: float32 `[D]`.
            limit: at most this many.
            condition: SQL that a row must fulfil.
            exact: compare with every row even where there is an index.
        """
        rows = ann.nearest(self._table, embedding, limit, ["path", "sha256"], condition, exact)
        hits = [Hit(row["path"], row["sha256"], 1.0 - row["_distance"]) for row in rows]
        return sorted(hits, key=lambda hit: (-hit.score, hit.path))

    def nearest_contents(
        self, embedding: FloatArray, limit: int, *, condition: str | None = None
    ) -> list[Hit]:
        """As `nearest`, but equal files are one hit: the first of their paths, with the others as its copies.

        Args:
            embedding: float32 `[D]`.
            limit: at most this many different contents.
            condition: SQL that a row must fulfil, a copy too.
        """
        best: dict[str, Hit] = {}
        asked = limit
        while True:
            # What is known is left out, and twice as many are asked for: a thousand copies of one file cost
            # one search more, not a thousand rows.
            known = other_contents(best) if best else None
            hits = self.nearest(embedding, asked, condition=all_of(condition, known) or None)
            for hit in hits:
                best.setdefault(hit.sha256, hit)
            if len(hits) < asked or len(best) >= limit:
                break
            asked *= 2
        found = sorted(best.values(), key=lambda hit: (-hit.score, hit.path))[:limit]
        files = self._files([hit.sha256 for hit in found], condition)
        # Rows may go between these reads, while an indexer writes.
        grouped = [
            replace(hit, path=paths[0], copies=tuple(paths[1:]))
            for hit in found
            if (paths := files.get(hit.sha256))
        ]
        return sorted(grouped, key=lambda hit: (-hit.score, hit.path))

    def _files(self, hashes: Sequence[str], condition: str | None) -> dict[str, list[str]]:
        """Sorted paths of the files of each contents that has any."""
        files: dict[str, list[str]] = {}
        for named in naming("sha256", hashes):
            query = self._table.search().where(all_of(named, condition)).select(["path", "sha256"])
            for row in query.to_arrow().to_pylist():
                files.setdefault(row["sha256"], []).append(row["path"])
        return {sha256: sorted(paths) for sha256, paths in files.items()}

    def thumbnails(self, paths: Iterable[str]) -> dict[str, bytes]:
        """The thumbnails of those of some paths that have a row."""
        found: dict[str, bytes] = {}
        for rows in self._named(paths, ["path", "thumbnail"]):
            found |= {row["path"]: row["thumbnail"] for row in rows.to_pylist()}
        return found

    def newest(self, limit: int, *, condition: str | None = None) -> list[str]:
        """Paths of the pictures that were taken last, the newest first, equals by path.

        Of one that does not say when it was taken, the time of its file's last change counts.

        Args:
            limit: at most this many.
            condition: SQL that a row must fulfil.
        """
        dated = [] if self.is_of_older_version else ["taken"]
        query = self._table.search().select(["path", "mtime_ns", *dated])
        if condition is not None:
            query = query.where(condition)
        rows = query.to_arrow()
        when = pc.divide(rows["mtime_ns"], 10**9)
        if dated:
            when = pc.coalesce(rows["taken"].cast(pa.int64()), when)
        rows = rows.append_column("when", when)
        keys = [("when", "descending"), ("mtime_ns", "descending"), ("path", "ascending")]
        order = pc.select_k_unstable(rows, limit, keys)
        paths: list[str] = rows["path"].take(order).to_pylist()
        return paths


def other_contents(hashes: Iterable[str]) -> str:
    """The SQL condition that a row has none of some contents, at least one."""
    return f"sha256 NOT IN ({', '.join(map(sql_text, hashes))})"
