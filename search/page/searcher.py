"""What is asked on the page, and the answer: one state, which the address bar shows."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cachetools import LRUCache
from starlette.datastructures import QueryParams

from clipserve.client import Client
from clipserve.encoder_spec import FloatArray
from clipserve.errors import RequestError
from pictures.errors import PicturesError
from pictures.filters import EVERYTHING, Filter
from pictures.paths import printable
from pictures.table import NAME, PictureTable, open_table
from pictures.thumbnails import make_thumbnail, thumbnail_size
from search.background import SAMPLE
from search.errors import SearchError
from search.expressions import combined, parse
from search.finder import Finder

PAGE = 60  # pictures that are sent at once; more follow as one scrolls
FIRST = 3 * PAGE  # pictures of an answer before one scrolls: of 100,000, in a sixth of the time of `LIMIT`
LIMIT = 2_000  # pictures of an answer

# Pictures that were dropped on the page: a kilobyte or two of embedding and 10 kB of thumbnail each.
HELD_PICTURES = 256
# Answers that are being scrolled through: a path and two numbers for each of `LIMIT` pictures at most.
HELD_ANSWERS = 16

# Of a picture that is marked as unwanted. Less than of what is wanted, as in Rocchio's relevance feedback
# (1971): the whole of it would take away with it what all pictures have in common.
UNLIKE = -0.5

# An address' names of what `pictures.filters.Filter` has, in its order.
FILTERS = ("part", "camera", "place", "since", "until")

# Standard scores of `search.background` in words.
CLOSENESS = {3.0: "very close", 2.0: "close", 1.0: "fair"}


@dataclass(frozen=True)
class Query:
    """A query as the address bar has it.

    Attributes:
        text: texts and pictures of the table with + and −, see `search.expressions`; may be empty.
        like: SHA-256 of pictures that they are like.
        unlike: SHA-256 of pictures that they are not like.
        which: what the pictures must fulfil besides.
        least: least standard score, see `search.background`; None for no bound.
    """

    text: str = ""
    like: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    which: Filter = EVERYTHING
    least: float | None = None

    @classmethod
    def read(cls, parameters: QueryParams) -> Query:
        """The query of an address.

        Raises:
            SearchError: a number is none, or out of its range.
        """
        least = parameters.get("least", "").strip()
        return cls(
            parameters.get("q", "").strip(),
            tuple(parameters.getlist("like")),
            tuple(parameters.getlist("unlike")),
            Filter(*(parameters.get(name, "").strip() for name in FILTERS)),
            _number("how close", least, 0, 10) if least else None,
        )

    @property
    def asks(self) -> bool:
        """Whether there is anything to compare with; the newest pictures are shown otherwise."""
        return bool(self.text or self.like or self.unlike)


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
        match: how similar it is; None where nothing was compared.
        copies: paths of equal files.
    """

    path: str
    thumbnail: bytes
    width: int
    height: int
    match: Match | None
    copies: tuple[str, ...]


@dataclass(frozen=True)
class Match:
    """How similar a picture is: cosine similarity, and by how much that stands out (`search.background`)."""

    cosine: float
    standard_score: float

    @property
    def closeness(self) -> str:
        """The same in a word or two."""
        return next((word for least, word in CLOSENESS.items() if self.standard_score >= least), "distant")


@dataclass(frozen=True)
class Answer:
    """What is shown of an answer at once.

    Attributes:
        tiles: pictures, the most similar (or the newest) first.
        found: how many pictures the answer has in all; None where that was not looked for yet.
        next: offset of the pictures that follow; None at the end.
        own: paths of the query's own pictures, which are left out.
        indexed: how many pictures the table has.
    """

    tiles: list[Tile]
    found: int | None
    next: int | None
    own: tuple[str, ...]
    indexed: int


@dataclass(frozen=True)
class _Held:
    """An answer that is being scrolled through: its pictures, and whether these are all."""

    pictures: list[tuple[str, Match | None, tuple[str, ...]]]
    is_complete: bool
    own: tuple[str, ...]


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
        self._opened: tuple[int | None, PictureTable] | None = None
        self._answers: LRUCache[Query, _Held] = LRUCache(HELD_ANSWERS)
        self._samples: LRUCache[tuple[str, int], FloatArray] = LRUCache(1)

    @property
    def table(self) -> PictureTable:
        """The table as it is now; opened once, for what LanceDB holds of it in memory.

        Raises:
            PicturesError: there is none.
        """
        try:
            # Another one where the folder was removed and made anew.
            place = (self._folder / f"{NAME}.lance").stat().st_ino
        except OSError:
            place = None
        with self._lock:
            if self._opened is None or self._opened[0] != place:
                self._opened = place, open_table(self._folder)
            return self._opened[1]

    def answer(self, query: Query, offset: int) -> Answer:
        """A page of the answer to a query; from the second page on of the one that the first page was of.

        Raises:
            PicturesError: there is no table.
            SearchError: the query cannot be read, or a picture of it is not known any more.
            ServerError: the server cannot be reached or fails.
            RequestError: a text is wrong.
        """
        end = offset + PAGE
        table = self.table
        with self._lock:
            held = self._answers.get(query) if offset else None
        if held is None or (end > len(held.pictures) and not held.is_complete):
            held = self._look_for(query, table, LIMIT if offset else FIRST, held)
            with self._lock:
                self._answers[query] = held
        shown = held.pictures[offset:end]
        thumbnails = table.thumbnails(path for path, _, _ in shown)
        # Rows may go between these reads, while an indexer writes.
        tiles = [
            Tile(path, small, *thumbnail_size(small), match, copies)
            for path, match, copies in shown
            if (small := thumbnails.get(path))
        ]
        is_last = held.is_complete and end >= len(held.pictures)
        return Answer(
            tiles,
            len(held.pictures) if held.is_complete else None,
            None if is_last else end,
            held.own,
            len(table),
        )

    def _look_for(self, query: Query, table: PictureTable, limit: int, before: _Held | None) -> _Held:
        """The answer of at most `limit` pictures, those that were shown before at its start."""
        finder = Finder(self._client, table, limit, query.least, query.which, self._sample(table))
        own: tuple[str, ...] = ()
        if query.asks:
            embedding, hashes = self._embed(query, finder, table)
            own = table.paths(hashes)
            found = finder.nearest(query.text, embedding, hashes)
            pictures: list[tuple[str, Match | None, tuple[str, ...]]] = [
                (hit.path, Match(hit.score, found.standard_score(hit)), hit.copies) for hit in found.hits
            ]
            is_complete = found.is_complete or limit == LIMIT
        else:
            pictures = [(path, None, ()) for path in finder.newest()]
            is_complete = len(pictures) < limit or limit == LIMIT
        shown = before.pictures if before else []
        known = {path for path, _, _ in shown}
        return _Held([*shown, *(one for one in pictures if one[0] not in known)], is_complete, own)

    def cameras(self) -> list[str]:
        """What may be chosen as a camera; nothing where there is no table."""
        try:
            return self.table.cameras()
        except PicturesError:
            return []

    def _sample(self, table: PictureTable) -> FloatArray:
        key = table.space_id, table.version
        with self._lock:
            held = self._samples.get(key)
        if held is None:
            held = table.sample(SAMPLE)
            with self._lock:
                self._samples[key] = held
        return held

    def _embed(self, query: Query, finder: Finder, table: PictureTable) -> tuple[FloatArray, set[str]]:
        """The sum of what is wanted less that of what is not, float32 `[D]`, and SHA-256 of its pictures."""
        terms = parse(query.text) if query.text else []
        texts = [term.text for term in terms if not term.is_picture]
        embedded = dict(zip(texts, finder.embed_texts(texts), strict=True)) if texts else {}
        pictures = [(term.weight, _hash_of(table, term.text)) for term in terms if term.is_picture]
        pictures += [(1.0, sha256) for sha256 in query.like] + [(UNLIKE, sha256) for sha256 in query.unlike]
        parts = [(term.weight, embedded[term.text]) for term in terms if not term.is_picture]
        parts += [(weight, self._picture(sha256, table).embedding) for weight, sha256 in pictures]
        weights, embeddings = zip(*parts, strict=True)
        return combined(weights, embeddings), {sha256 for _, sha256 in pictures}

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
        embedding = Finder(self._client, table, LIMIT, sample=self._sample(table)).embed_image(data)
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


def _hash_of(table: PictureTable, path: str) -> str:
    """SHA-256 of a picture that is named by its path: of the table only, no other file is read."""
    state = table.state(path)
    if state is None:
        raise SearchError(
            f"{printable(path)}: not in the table; drop the picture here, or put a text into quotes"
        )
    return state.sha256


def _thumbnail(data: bytes) -> bytes:
    """The thumbnail of a picture that the server took; empty where none can be made: that stops no search."""
    try:
        return make_thumbnail(data)
    except RequestError:  # the server may be set to admit more
        return b""
