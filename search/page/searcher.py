"""What is asked on the page, and the answer: one state, which the address bar shows."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cachetools import LRUCache
from starlette.datastructures import QueryParams

from clipserve.client import Client
from clipserve.encoder_spec import FloatArray
from clipserve.errors import RequestError
from pictures.table import PictureTable, open_table
from pictures.thumbnails import make_thumbnail, thumbnail_size
from search.errors import SearchError
from search.finder import Finder

LIMIT = 200  # pictures of an answer unless the page is asked for others
MAX_LIMIT = 2_000
PAGE = 60  # pictures that are sent at once; more follow as one scrolls

# Pictures that were dropped on the page: a kilobyte or two of embedding and 10 kB of thumbnail each.
HELD_PICTURES = 256
# Answers that are being scrolled through: 10 kB of thumbnail for each of `MAX_LIMIT` pictures at most.
HELD_ANSWERS = 4

# Shorter than any text of it that cancels itself out, longer than what rounding leaves of one that does.
LEAST_NORM = 1e-4


@dataclass(frozen=True)
class Query:
    """A query as the address bar has it.

    Attributes:
        text: what the pictures show; may be empty.
        without: what they do not show; may be empty.
        like: SHA-256 of pictures that they are like.
        unlike: SHA-256 of pictures that they are not like.
        part: part of the path, see `pictures.paths.path_condition`; empty for every path.
        min_score: least cosine similarity; None for no bound.
        limit: pictures at most.
    """

    text: str = ""
    without: str = ""
    like: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    part: str = ""
    min_score: float | None = None
    limit: int = LIMIT

    @classmethod
    def read(cls, parameters: QueryParams) -> Query:
        """The query of an address.

        Raises:
            SearchError: a number is none, or out of its range.
        """
        least = parameters.get("min", "").strip()
        return cls(
            parameters.get("q", "").strip(),
            parameters.get("without", "").strip(),
            tuple(parameters.getlist("like")),
            tuple(parameters.getlist("unlike")),
            parameters.get("part", "").strip(),
            _number("least similarity", least, -1, 1) if least else None,
            int(_number("pictures at most", parameters.get("limit", "").strip() or str(LIMIT), 1, MAX_LIMIT)),
        )

    @property
    def asks(self) -> bool:
        """Whether there is anything to compare with; the newest pictures are shown otherwise."""
        return bool(self.text or self.without or self.like or self.unlike)


def _number(name: str, text: str, low: int, high: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not low <= value <= high:
        raise SearchError(f"{name}: {text!r} is no number from {low} to {high}")
    return value


@dataclass(frozen=True)
class Tile:
    """A picture of an answer.

    Attributes:
        path: in text form, see `pictures.paths`.
        thumbnail: a JPEG.
        width: of the thumbnail, pixels.
        height: of the thumbnail, pixels.
        score: cosine similarity; None where nothing was compared.
        copies: paths of equal files.
    """

    path: str
    thumbnail: bytes
    width: int
    height: int
    score: float | None = None
    copies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Pictures, the most similar (or the newest) first, of a table with `indexed` of them."""

    tiles: list[Tile]
    indexed: int


@dataclass(frozen=True)
class _Picture:
    embedding: FloatArray
    thumbnail: bytes


class Searcher:
    """Answers the page's queries; safe to use from several threads.

    Args:
        client: of the server that embeds the queries.
        folder: of the table; it may be made while the page is open.
    """

    def __init__(self, client: Client, folder: Path):
        self._client = client
        self._folder = folder
        self._lock = threading.Lock()
        # By embedding space and SHA-256. In memory only: nothing of it is left when the page ends.
        self._pictures: LRUCache[tuple[str, str], _Picture] = LRUCache(HELD_PICTURES)
        self._answers: LRUCache[Query, Answer] = LRUCache(HELD_ANSWERS)

    @property
    def table(self) -> PictureTable:
        """The table as it is now.

        Raises:
            PicturesError: there is none.
        """
        return open_table(self._folder)

    def answer(self, query: Query, offset: int) -> Answer:
        """The answer to a query; from the second page on the one that the first page was of.

        Raises:
            PicturesError: there is no table.
            SearchError: a picture of the query is not known any more.
            ServerError: the server cannot be reached or fails.
            RequestError: a text is wrong.
        """
        with self._lock:
            held = self._answers.get(query) if offset else None
        if held is not None:
            return held
        table = self.table
        finder = Finder(self._client, table, query.limit, query.min_score, query.part)
        if query.asks:
            tiles = [
                Tile(hit.path, hit.thumbnail, *thumbnail_size(hit.thumbnail), hit.score, hit.copies)
                for hit in finder.nearest(self._embed(query, finder, table))
            ]
        else:
            tiles = [Tile(path, small, *thumbnail_size(small)) for path, small in finder.newest()]
        answer = Answer(tiles, len(table))
        with self._lock:
            self._answers[query] = answer
        return answer

    def _embed(self, query: Query, finder: Finder, table: PictureTable) -> FloatArray:
        """The sum of what is wanted less the sum of what is not, L2-normalised: float32 `[D]`."""
        texts = [text for text in (query.text, query.without) if text]
        embedded: Mapping[str, FloatArray] = (
            dict(zip(texts, finder.embed_texts(texts), strict=True)) if texts else {}
        )
        wanted = [embedded[query.text]] if query.text else []
        unwanted = [embedded[query.without]] if query.without else []
        wanted += [self._picture(sha256, table).embedding for sha256 in query.like]
        unwanted += [self._picture(sha256, table).embedding for sha256 in query.unlike]
        total = np.zeros(table.embedding_dim, np.float32)
        total += sum(wanted, np.float32(0)) - sum(unwanted, np.float32(0))
        norm = np.linalg.norm(total)
        if norm < LEAST_NORM:
            raise SearchError("what is wanted and what is not are the same; leave one of them out")
        return np.asarray(total / norm, np.float32)

    def add_picture(self, data: bytes) -> str:
        """Embeds a picture that was dropped, given as its file's bytes, and holds it for queries.

        Returns:
            Its SHA-256, which queries name it by.

        Raises:
            PicturesError: there is no table.
            ServerError: the server cannot be reached or fails.
            RequestError: the bytes are no picture that the server takes.
        """
        table = self.table
        embedding = Finder(self._client, table, LIMIT, None, None).embed_image(data)
        sha256 = hashlib.sha256(data).hexdigest()
        with self._lock:
            self._pictures[table.space_id, sha256] = _Picture(embedding, _thumbnail(data))
        return sha256

    def thumbnail(self, sha256: str) -> bytes:
        """The thumbnail of a picture that was dropped or is in the table, a JPEG.

        Raises:
            SearchError: it is neither.
        """
        return self._picture(sha256, self.table).thumbnail

    def _picture(self, sha256: str, table: PictureTable) -> _Picture:
        with self._lock:
            held = self._pictures.get((table.space_id, sha256))
        if held is not None:
            return held
        if sha256 not in (rows := table.by_hash([sha256])):
            raise SearchError(
                "a picture of this query is not known any more; remove it, and drop it once more"
            )
        return _Picture(*rows[sha256])


def _thumbnail(data: bytes) -> bytes:
    """The thumbnail of a picture that the server took; empty where none can be made: that stops no search."""
    try:
        return make_thumbnail(data)
    except RequestError:  # the server may be set to admit more
        return b""
