"""Queries: from texts and pictures to the pictures of the table that are nearest."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from clipserve.client import Client
from clipserve.encoder_spec import FloatArray
from pictures.filters import EVERYTHING, Filter
from pictures.paths import printable
from pictures.reader import Hit, other_contents
from pictures.storage import all_of
from pictures.table import PictureTable
from search.background import SAMPLE, Background
from search.errors import SearchError
from search.expressions import combined, parse
from search.queries import normalized
from search.space import of_space


@dataclass(frozen=True)
class Found:
    """The answer to one query.

    Attributes:
        query: what was asked.
        hits: the most similar first.
        background: what their cosine similarities stand out from.
        is_complete: whether there is no other hit beyond the limit.
    """

    query: str
    hits: list[Hit]
    background: Background
    is_complete: bool

    def standard_score(self, hit: Hit) -> float:
        """By how much a hit stands out, see `search.background`."""
        return self.background.standard_score(hit.score)


class Finder:
    """Answers queries on one table.

    Args:
        client: of the server that embeds the queries.
        table: where to look.
        limit: pictures of a query, at most; equal files are one.
        least: standard score that a picture needs, see `search.background`; None for no bound.
        which: what a picture must fulfil besides.
        sample: embeddings of pictures of the table at random, where they are at hand.

    Raises:
        SearchError: something must be fulfilled that a table of an older version cannot be asked for.
        PicturesError: what should be a date is none.
    """

    def __init__(
        self,
        client: Client,
        table: PictureTable,
        limit: int,
        least: float | None = None,
        which: Filter = EVERYTHING,
        sample: FloatArray | None = None,
    ):
        self._condition = which.condition()
        if self._condition and table.is_of_older_version:
            folder = printable(str(table.folder))
            raise SearchError(
                f"{folder}: written by an older version, which kept nothing to find paths, dates, cameras "
                f"and places by; any run of the indexer adds it: make index IMAGES=folder TABLE={folder}"
            )
        client.require_space(table.space_id)
        self._client = client
        self._table = table
        self._limit = limit
        self._least = least
        self._sample = table.sample(SAMPLE) if sample is None else sample

    def by_query(self, query: str) -> Found:
        """The answer to texts and picture files with + and −, see `search.expressions`.

        Raises:
            SearchError: it cannot be read.
            OSError: a picture cannot be read.
            PicturesError, ServerError, RequestError: as of `embed_texts`.
        """
        terms = parse(query)
        texts = [term.text for term in terms if not term.is_picture]
        of_texts = dict(zip(texts, self.embed_texts(texts), strict=True)) if texts else {}
        embeddings, pictures = [], set()
        for term in terms:
            if term.is_picture:
                data = Path(term.text).expanduser().read_bytes()
                pictures.add(hashlib.sha256(data).hexdigest())
                embeddings.append(self.embed_image(data))
            else:
                embeddings.append(of_texts[term.text])
        return self.nearest(query, combined([term.weight for term in terms], embeddings), pictures)

    def by_texts(self, texts: Sequence[str] | str) -> list[Found]:
        """An answer for each text, every sign of which is a part of it; errors as of `embed_texts`."""
        listed = _listed(texts)
        embeddings = self.embed_texts(listed)
        return [self.nearest(text, embedding) for text, embedding in zip(listed, embeddings, strict=True)]

    def by_image(self, image: Path) -> Found:
        """An answer for a picture; errors as of `embed_image`, and OSError where it cannot be read."""
        data = image.read_bytes()
        return self.nearest(str(image), self.embed_image(data), {hashlib.sha256(data).hexdigest()})

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

    def nearest(self, query: str, embedding: FloatArray, without: Collection[str] = ()) -> Found:
        """The pictures nearest to an embedding, the nearest first.

        Args:
            query: what it is of, in words.
            embedding: of the table's space, float32 `[D]`.
            without: SHA-256 of contents that are left out, as of the query's own pictures.
        """
        condition = all_of(self._condition, other_contents(without) if without else None) or None
        hits = self._table.nearest_contents(embedding, self._limit, condition=condition)
        background = Background.of(embedding, self._sample)
        least = -math.inf if self._least is None else self._least
        kept = [hit for hit in hits if background.standard_score(hit.score) >= least]
        return Found(query, kept, background, len(hits) < self._limit or len(kept) < len(hits))

    def newest(self) -> list[str]:
        """Paths of the pictures that changed last, the newest first."""
        return self._table.newest(self._limit, condition=self._condition)


def _listed(texts: Sequence[str] | str) -> Sequence[str]:
    """A text alone is a list of one: a string is a sequence, too, of its letters."""
    return [texts] if isinstance(texts, str) else texts
