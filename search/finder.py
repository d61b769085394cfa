"""Queries: from a text or a picture to the pictures of the table that are nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from clipserve.client import Client
from clipserve.encoder_spec import FloatArray
from pictures.paths import path_condition, printable
from pictures.table import Hit, PictureTable
from search.errors import SearchError
from search.queries import normalized
from search.space import of_space


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
        path: part of the path, see `pictures.paths.path_condition`; None for every path.

    Raises:
        SearchError: a part of the path is given, and the table is one that cannot be asked for it yet.
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

    def by_texts(self, texts: Sequence[str] | str) -> list[Found]:
        """An answer for each text; errors as of `embed_texts`."""
        listed = _listed(texts)
        embeddings = self.embed_texts(listed)
        return [
            Found(text, self.nearest(embedding)) for text, embedding in zip(listed, embeddings, strict=True)
        ]

    def by_image(self, image: Path) -> Found:
        """An answer for a picture; errors as of `embed_image`, and OSError where it cannot be read."""
        return Found(str(image), self.nearest(self.embed_image(image.read_bytes())))

    def embed_texts(self, texts: Sequence[str] | str) -> FloatArray:
        """Embeddings of texts, as `search.queries.normalized` writes them: float32 `[N, D]`.

        Raises:
            PicturesError: the server embeds in another space than the table's.
            ServerError: the server cannot be reached or fails.
            RequestError: a text is wrong.
        """
        with of_space(self._table):
            return self._client.embed_texts([normalized(text) for text in _listed(texts)])

    def embed_image(self, data: bytes) -> FloatArray:
        """The embedding of a picture, given as a file's bytes: float32 `[D]`; errors as of `embed_texts`."""
        with of_space(self._table):
            return cast(FloatArray, self._client.embed_images([data])[0])

    def nearest(self, embedding: FloatArray) -> list[Hit]:
        """The pictures nearest to an embedding of the table's space, float32 `[D]`, the nearest first."""
        hits = self._table.nearest_contents(embedding, self._limit, condition=self._condition)
        return [hit for hit in hits if self._min_score is None or hit.score >= self._min_score]

    def newest(self) -> list[tuple[str, bytes]]:
        """Path and thumbnail of the pictures that changed last, the newest first."""
        return self._table.newest(self._limit, condition=self._condition)


def _listed(texts: Sequence[str] | str) -> Sequence[str]:
    """A text alone is a list of one: a string is a sequence, too, of its letters."""
    return [texts] if isinstance(texts, str) else texts
