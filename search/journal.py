"""What was paid for and is not in the table: embeddings on their way there, and pictures that break servers.

Rows go into the table by the hundred; a process that is killed would lose what it was gathering. Here each
embedding is put down as it arrives, and is looked up before the server is asked. So is each picture that a
server died or timed out on, since asking again costs a worker again. A cache: it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from clipserve.encoder_spec import FloatArray
from pictures.paths import printable
from search.errors import SearchError

NAME = "journal.sqlite"


class Journal:
    """By SHA-256 of the picture's bytes, of one embedding space; safe to use from several threads.

    Args:
        folder: where it lies.
        space_id: what lies there of another space is dropped.

    Raises:
        SearchError: the folder cannot be written.
    """

    def __init__(self, folder: Path, space_id: str):
        self._path = folder / NAME
        self._lock = threading.Lock()
        with self._errors():
            try:
                self._database = self._open(space_id)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                # Damaged by a power cut, which is not waited for at each row.
                self._path.unlink()
                self._database = self._open(space_id)

    def _open(self, space_id: str) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        # Safe against the end of the process, not of the machine: a write costs microseconds.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = OFF")
        database.execute(
            "CREATE TABLE IF NOT EXISTS embeddings (sha256 TEXT PRIMARY KEY, space_id TEXT, embedding BLOB)"
        )
        database.execute(
            "CREATE TABLE IF NOT EXISTS failures (sha256 TEXT PRIMARY KEY, space_id TEXT, reason TEXT)"
        )
        database.execute("DELETE FROM embeddings WHERE space_id != ?", [space_id])
        database.execute("DELETE FROM failures WHERE space_id != ?", [space_id])
        self._space_id = space_id
        return database

    def get(self, sha256: str) -> FloatArray | None:
        """The embedding of contents, None if it is not here."""
        with self._lock, self._errors():
            row = self._database.execute(
                "SELECT embedding FROM embeddings WHERE sha256 = ?", [sha256]
            ).fetchone()
        return None if row is None else np.frombuffer(row[0], np.float32)

    def put(self, sha256: str, embedding: FloatArray) -> None:
        """Puts an embedding down."""
        row = [sha256, self._space_id, np.ascontiguousarray(embedding, np.float32).tobytes()]
        with self._lock, self._errors():
            self._database.execute("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?)", row)

    def forget(self, hashes: Iterable[str]) -> None:
        """Drops embeddings, which are in the table now."""
        with self._lock, self._errors():
            self._database.execute("BEGIN")
            self._database.executemany(
                "DELETE FROM embeddings WHERE sha256 = ?", [[sha256] for sha256 in hashes]
            )
            self._database.execute("COMMIT")

    def failure(self, sha256: str) -> str | None:
        """What became of the server that was sent these contents, None where nothing is known of it."""
        with self._lock, self._errors():
            row = self._database.execute("SELECT reason FROM failures WHERE sha256 = ?", [sha256]).fetchone()
        return None if row is None else str(row[0])

    def put_failure(self, sha256: str, reason: str) -> None:
        """Remembers that the server failed on contents."""
        with self._lock, self._errors():
            self._database.execute(
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", [sha256, self._space_id, reason]
            )

    def forget_failures(self) -> None:
        """Forgets all that the server failed on."""
        with self._lock, self._errors():
            self._database.execute("DELETE FROM failures")

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise SearchError(f"{printable(str(self._path))}: cannot be written: {error}") from error
