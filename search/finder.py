"""Queries: from a text or a picture to the pictures of the table that are nearest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipserve.client import Client
from clipserve.encoder_spec import FloatArray
from clipserve.errors import SpaceError
from search.errors import SearchError
from search.indexer import check_space
from search.paths import path_condition, printable
from search.queries import normalized
from search.table import Hit, PictureTable


@dataclass(frozen=True)
class Found:
    """The answer to one query: what was asked, and the pictures, the most similar first."""

    query: str
    hits: list[Hit]


class Finder:
    """Answers queries on one table.

    Args:
        client: of the server that embeds the queries.
        table: where to look.
        limit: pictures of a query, at most; equal files are one.
        min_score: least cosine similarity; None for no bound.
        path: part of the path, see `search.paths.path_condition`; None for every path.

    Raises:
        SearchError: a part of the path is given, and the table is one that knows no such filter yet.
    """

    def __init__(
        self, client: Client, table: PictureTable, limit: int, min_score: float | None, path: str | None
    ):
        if path and not table.can_filter_paths:
            folder = printable(str(table.folder))
            raise SearchError(
                f"{folder}: written by an older version, which kept nothing to find a part of the path by; "
                f"any run of the indexer adds it: make index IMAGES=folder TABLE={folder}"
            )
        client.require_space(table.space_id)
        self._client = client
        self._table = table
        self._limit = limit
        self._min_score = min_score
        self._condition = path_condition(path) if path else None

    def by_texts(self, texts: Sequence[str]) -> list[Found]:
        """An answer for each text, which is embedded as `search.queries.normalized` writes it.

        Raises:
            SearchError: the server embeds in another space than the table's.
            ServerError: the server cannot be reached or fails.
            RequestError: a text is wrong.
        """
        with self._same_space():
            embeddings = self._client.embed_texts([normalized(text) for text in texts])
        return [
            Found(text, self._nearest(embedding)) for text, embedding in zip(texts, embeddings, strict=True)
        ]

    def by_image(self, image: Path) -> Found:
        """An answer for a picture file; errors as of `by_texts`, and OSError where it cannot be read."""
        return self.by_image_bytes(image.read_bytes(), str(image))

    def by_image_bytes(self, data: bytes, query: str) -> Found:
        """An answer for the bytes of a picture, named `query`; errors as of `by_texts`."""
        with self._same_space():
            embedding = self._client.embed_images([data])[0]
        return Found(query, self._nearest(embedding))

    @contextlib.contextmanager
    def _same_space(self) -> Iterator[None]:
        try:
            yield
        except SpaceError as error:
            check_space(self._table, error.space_id)
            raise

    def _nearest(self, embedding: FloatArray) -> list[Hit]:
        hits = self._table.nearest_contents(embedding, self._limit, condition=self._condition)
        return [hit for hit in hits if self._min_score is None or hit.score >= self._min_score]
