"""A picture's file, read and embedded by the server: the same contents once, and none that a server died of.

Contents go by their SHA-256. What the table or the journal holds is not sent; copies that are read side by
side wait for the first of them; what the server failed on costs it no second worker.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from clipserve.client import Client
from clipserve.encoder_spec import FloatArray
from clipserve.errors import RequestError, ServerError
from pictures.facts import Facts, read_facts
from pictures.files import Contents, FoundFile, read_contents
from pictures.rows import FileState
from pictures.table import PictureTable
from pictures.thumbnails import make_thumbnail
from search.journal import Journal
from search.space import of_space


@dataclass(frozen=True)
class ReadPicture:
    """A file that was read.

    Attributes:
        found: the file.
        state: of it.
        embedding, thumbnail: None where the table holds its contents.
        is_new: whether the server embedded it now.
    """

    found: FoundFile
    state: FileState
    embedding: FloatArray | None
    thumbnail: bytes | None
    facts: Facts
    is_new: bool


class ServerFailedError(Exception):
    """The server failed on contents, of this SHA-256."""

    def __init__(self, sha256: str, reason: str):
        super().__init__(reason)
        self.sha256 = sha256
        self.reason = reason


class FailedBeforeError(Exception):
    """The server failed on contents in an earlier run, and they are not sent; says what it said then."""


class FileEmbedder:
    """Reads files and has them embedded, several at once from threads of a pool.

    Args:
        client: of the server that embeds.
        table: of whose space the embeddings have to be.
        journal: knows embeddings that are not in the table yet, and contents that are not sent.
        in_table: SHA-256 of the contents whose embeddings are in the table.

    Attributes:
        in_table: the same; whoever writes the table keeps it up to date.
    """

    def __init__(self, client: Client, table: PictureTable, journal: Journal, in_table: set[str]):
        self.in_table = in_table
        self._client = client
        self._table = table
        self._journal = journal
        self._lock = threading.Lock()
        self._turns: dict[str, threading.Lock] = {}
        self._suspected: set[str] = set()

    def ask_again(self) -> None:
        """Has contents sent once more that the server failed on since the last such call."""
        self._suspected.clear()

    def read(self, found: FoundFile) -> ReadPicture:
        """Reads a file, and has it embedded unless its contents are known.

        Raises:
            FailedBeforeError: its contents are not sent.
            ServerFailedError: the server failed on them, or on a copy of them.
            RequestError: the server refused them.
            ClipServeError: the server is of another embedding space, or the journal cannot be written.
            OSError: the file cannot be read.
            Exception: no thumbnail can be made, for whatever Pillow's decoders stumble over.
        """
        indexed_ns = time.time_ns()
        contents = read_contents(found)
        sha256 = contents.sha256
        with self._turn(sha256):
            # In this order: contents are put among those of the table before they leave the journal.
            embedding = self._journal.get(sha256)
            is_new = embedding is None and sha256 not in self.in_table
            if is_new:
                embedding = self._embed(contents)
                self._journal.put(sha256, embedding)
        thumbnail = None if embedding is None else _thumbnail(contents.data)
        state = FileState(len(contents.data), contents.mtime_ns, sha256, indexed_ns)
        return ReadPicture(found, state, embedding, thumbnail, read_facts(contents.data), is_new)

    def _embed(self, contents: Contents) -> FloatArray:
        known = self._journal.failure(contents.sha256)
        if known is not None:
            raise FailedBeforeError(known)
        if contents.sha256 in self._suspected:
            raise ServerFailedError(contents.sha256, "as on its copy")
        try:
            # One picture a request: a bad one hurts no other, and the server batches what is waiting.
            with of_space(self._table):
                embedding: FloatArray = self._client.embed_images([contents.data])[0]
        except (RequestError, ServerError) as error:
            # Of the two, what the server could not do in its time: the picture may be innocent of that.
            if isinstance(error, RequestError) and error.status < 500:
                raise
            # Here, before a copy has its turn.
            self._suspected.add(contents.sha256)
            raise ServerFailedError(contents.sha256, str(error)) from error
        return embedding

    @contextlib.contextmanager
    def _turn(self, sha256: str) -> Iterator[None]:
        """Lets copies of one picture that are under way at once wait for the first of them."""
        with self._lock:
            turn = self._turns.setdefault(sha256, threading.Lock())
        with turn:
            yield
        self._turns.pop(sha256, None)


def _thumbnail(data: bytes) -> bytes:
    try:
        return make_thumbnail(data)
    except RequestError as error:
        # Not the server's word: that took the picture, and this room lacks a decoder or has narrower limits.
        raise ValueError(error.message) from error
