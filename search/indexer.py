"""Brings the table to what lies in a folder: new, changed, moved and removed pictures.

The table is the record of what was done: a run takes what differs from it, and so goes on where another
ended, for whatever reason. Rows are committed by the hundred; what was embedded since is in the journal.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from clipserve.client import Client, Management
from clipserve.errors import ClipServeError, RequestError, ServerError
from pictures.files import FoundFile, Listing, list_pictures
from pictures.paths import path_to_text, printable
from pictures.rows import Row
from pictures.storage import sole_writer
from pictures.table import PictureTable, open_or_create_table, replace_table
from search.embedding import FailedBeforeError, FileEmbedder, ReadPicture, ServerFailedError
from search.errors import SearchError
from search.journal import Journal
from search.report import Report, passed_over, write_failed
from search.space import require_server_space

# Requests under way at once: enough that the server finds a batch waiting whenever it takes one.
CONCURRENCY = 8

COMMIT_ROWS = 256
COMMIT_SECONDS = 10.0

# Fragments are joined, and the ANN index is brought up to date, after this many rows, not only at the end.
MAINTAIN_ROWS = 50_000

# After failing on this many pictures, one after the other, the server has to show that it is alive.
SERVER_FAILURES = CONCURRENCY + 1
# A worker that a picture has killed is replaced in this time.
READY_SECONDS = 60.0

RECALL_QUERIES = 50


def index_folder(
    client: Client,
    root: Path,
    folder: Path,
    *,
    exclude: Sequence[str] = (),
    again: bool = False,
    away: Callable[[], Collection[str]] | None = None,
) -> Report:
    """Brings the table in `folder` to what lies in `root`.

    Args:
        client: of the server that embeds.
        root: the folder of pictures.
        folder: of the table.
        exclude: patterns of what is left out, see `pictures.exclusions`.
        again: embeds again what does not count: all rows, where they are of another embedding space, and what
            the server failed on before.
        away: where nobody looks on: gives the folders below `root`, in text form, whose disks are not there.
            Rows of files below these are kept, and of all that are gone where more are gone than are there.

    Raises:
        SearchError: `root` holds no pictures.
        PicturesError: it cannot be read, or the table cannot be written or belongs to another space.
        ServerError: the server cannot be reached; what was embedded before is kept.
    """
    start = time.monotonic()
    listing = list_pictures(root, exclude)
    if not listing.pictures:
        # Also a disk that is not mounted: nothing is removed for that.
        raise SearchError(
            f"{printable(str(root))}: no pictures in this folder ({passed_over(listing)}); the table "
            f"{printable(str(folder))} is left as it was"
        )
    spec = Management(client).specs("clip_image")[0]
    with sole_writer(folder, lambda: print("another indexer is writing to this table: waiting", flush=True)):
        identity = spec.space_id, spec.model_id, spec.embedding_dim
        table = open_or_create_table(folder, *identity)
        if again and table.space_id != spec.space_id:
            print(
                f"{printable(str(folder))}: begun anew; {len(table)} pictures embedded by {table.model!r} in "
                f"space {table.space_id[:12]} are dropped; those of other folders have to be indexed again",
                flush=True,
            )
            table = replace_table(folder, *identity)
        require_server_space(table, spec.space_id)
        client.require_space(table.space_id)
        with contextlib.closing(Journal(folder, table.space_id)) as journal:
            if again:
                journal.forget_failures()
            run = _Run(client, table, journal, listing)
            run.bring_up_to_date(path_to_text(os.fsencode(root.resolve())).rstrip("/") + "/", away)
        run.report.failed_list = write_failed(folder, run.report.failed)
    run.report.seconds = time.monotonic() - start
    return run.report


class _Run:
    """One run over one table."""

    def __init__(self, client: Client, table: PictureTable, journal: Journal, listing: Listing):
        self.report = Report(listing, failed=list(listing.skipped))
        self._client = client
        self._table = table
        self._journal = journal
        self._states = table.states()
        # As of a table that an older version wrote: read once more, not embedded again.
        self._without_facts = table.without_facts()
        in_table = {state.sha256 for state in self._states.values()}
        self._embedder = FileEmbedder(client, table, journal, in_table)
        self._waiting: list[ReadPicture] = []
        self._last_commit = time.monotonic()
        self._server_failures = 0
        # What the server failed on in company: whether it was their fault is found out afterwards.
        self._suspects: list[FoundFile] = []
        # Rows whose file was read and is no picture any more.
        self._outdated: list[str] = []

    def bring_up_to_date(self, below: str, away: Callable[[], Collection[str]] | None) -> None:
        """Adds, replaces and removes rows; `below` is the text form of the folder, with its last slash."""
        todo = [found for found in self.report.listing.pictures if not self._is_unchanged(found)]
        # New paths first: a moved file finds its embedding in a row that a changed one may replace.
        todo.sort(key=lambda found: found.path in self._states)
        self.report.unchanged = len(self.report.listing.pictures) - len(todo)
        if todo:
            told = f"{self.report.files} files found: {self.report.unchanged} pictures unchanged"
            print(f"{told}, {len(todo)} to read", file=sys.stderr)  # beside the bar
        with (
            tqdm(total=len(todo), unit=" pictures", disable=None, smoothing=0.05) as bar,
            contextlib.closing(self._read_all(todo, bar)) as reads,
        ):
            try:
                for read in chain(reads, self._ask_alone()):
                    self._waiting.append(read)
                    waited = time.monotonic() - self._last_commit
                    if len(self._waiting) >= COMMIT_ROWS or waited > COMMIT_SECONDS:
                        self._commit()
            finally:
                # Also on Ctrl-C and where the server fails: what is there is kept.
                self._commit()
        for found in self._suspects:
            self._fail(found, "the server failed; the same command asks again")
        self._remove_gone(below, away)
        if self.report.written or self.report.removed:
            self._table.maintain()
        if self._table.has_index:
            self.report.recall = self._table.recall(self._table.sample(RECALL_QUERIES))

    def _is_unchanged(self, found: FoundFile) -> bool:
        state = self._states.get(found.path)
        known = found.path not in self._without_facts
        return state is not None and known and state.is_of(found.size, found.mtime_ns)

    def _read_all(self, todo: Sequence[FoundFile], bar: tqdm[NoReturn]) -> Generator[ReadPicture, None, None]:
        """Reads and embeds files side by side; few at once, since their bytes are in memory."""
        rest = iter(todo)
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            running: dict[Future[ReadPicture], FoundFile] = {}
            try:
                while True:
                    while len(running) < 2 * CONCURRENCY and (found := next(rest, None)):
                        running[pool.submit(self._embedder.read, found)] = found
                    if not running:
                        return
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        bar.update()
                        if failed := len(self.report.failed) - len(self.report.listing.skipped):
                            bar.set_postfix_str(f"{failed} not indexed", refresh=False)
                        if read := self._outcome(running.pop(future), future.result):
                            yield read
            finally:
                for future in running:
                    future.cancel()

    def _ask_alone(self) -> Iterator[ReadPicture]:
        """Asks once more, one at a time, for what the server failed on in company.

        Most were neighbours of a picture that killed a worker. The one that the server fails on again, though
        it is well before and after, is to blame; it is remembered, and not sent again.
        """
        while self._suspects:
            found = self._suspects.pop(0)
            self._require_server()
            self._embedder.ask_again()
            if read := self._outcome(found, partial(self._embedder.read, found), alone=True):
                yield read

    def _require_server(self) -> None:
        try:
            Management(self._client).wait_ready(READY_SECONDS, ("clip_image",))
        except ServerError as error:
            raise ServerError(
                f"{error}; what was embedded so far is kept, and the same command goes on from there"
            ) from error

    def _outcome(
        self, found: FoundFile, result: Callable[[], ReadPicture], *, alone: bool = False
    ) -> ReadPicture | None:
        """The result of a file; None, and a line in the report or a place among the suspects, without one."""
        try:
            read = result()
        except RequestError as error:
            self._server_failures = 0
            self._fail_for_good(found, error.message)
        except FailedBeforeError as error:
            self._fail_for_good(
                found, f"not sent, since the server failed on it before ({error}); AGAIN=1 sends it"
            )
        except ServerFailedError as error:
            if alone:
                self._require_server()
                self._journal.put_failure(error.sha256, error.reason)
                self._fail_for_good(
                    found,
                    f"the server failed on it, alone too ({error.reason}); not sent again until it changes",
                )
                return None
            self._suspects.append(found)
            self._server_failures += 1
            if self._server_failures >= SERVER_FAILURES:
                self._require_server()
                self._server_failures = 0
        except ClipServeError:
            raise
        except OSError as error:
            self._fail(found, f"cannot be read: {error.strerror or error}")
        except Exception as error:
            # Pillow's decoders raise whatever a damaged file makes them stumble over.
            self._fail(found, f"no thumbnail can be made: {error}")
        else:
            self._server_failures = 0
            return read
        return None

    def _fail_for_good(self, found: FoundFile, reason: str) -> None:
        """As `_fail`, and the row of what the file held before goes."""
        if found.path in self._states:
            self._outdated.append(found.path)
        self._fail(found, reason)

    def _fail(self, found: FoundFile, reason: str) -> None:
        self.report.failed.append((found.path, reason))

    def _commit(self) -> None:
        """Puts what is waiting into the table."""
        reads, self._waiting = self._waiting, []
        self._last_commit = time.monotonic()
        rows = self._rows(reads)
        if not rows:
            return
        replacing = [row for row in rows if row.path in self._states]
        self._table.write([row for row in rows if row.path not in self._states], replacing)
        # A row is replaced as well where only the file's time was not to be trusted.
        self.report.changed += sum(row.state.sha256 != self._states[row.path].sha256 for row in replacing)
        for row in rows:
            self._states[row.path] = row.state
        contents = {row.state.sha256 for row in rows}
        self._embedder.in_table |= contents
        self._journal.forget(contents)
        self.report.written += len(rows)
        if self.report.written % MAINTAIN_ROWS < len(rows):
            self._table.maintain()

    def _rows(self, reads: Sequence[ReadPicture]) -> list[Row]:
        """Rows of files that were read, embeddings that the table has already fetched from there."""
        fetched = self._table.by_hash({read.state.sha256 for read in reads if read.embedding is None})
        rows = []
        for read in reads:
            contents = read.embedding, read.thumbnail
            if read.embedding is None:
                contents = fetched.get(read.state.sha256, (None, None))
            if contents[0] is None:
                # The last row of these contents was replaced in this very run: once more, then.
                self._embedder.in_table.discard(read.state.sha256)
                again = self._outcome(read.found, partial(self._embedder.read, read.found))
                if again is None:
                    continue
                read, contents = again, (again.embedding, again.thumbnail)
            embedding, thumbnail = contents
            if embedding is not None and thumbnail is not None:
                rows.append(Row(read.found.path, read.state, embedding, thumbnail, read.facts))
                self.report.embedded += read.is_new
        return rows

    def _remove_gone(self, below: str, away: Callable[[], Collection[str]] | None) -> None:
        """Removes rows of files that are gone from the folder, or hold no picture any more."""
        listing = self.report.listing
        there = {found.path for found in listing.pictures} | listing.unreadable_files
        unknown = tuple(f"{folder}/" for folder in listing.unreadable_folders)
        gone = [
            path
            for path in self._states
            if path.startswith(below) and path not in there and not path.startswith(unknown)
        ]
        if away is not None:
            # Asked for after the folder was listed: what was there by then is not gone.
            kept = tuple(f"{folder}/" for folder in away())
            # What is there under another name was moved, however much of it.
            moved = {self._states[path].sha256 for path in there if path in self._states}
            lost = [path for path in gone if self._states[path].sha256 not in moved]
            doubtful = {path for path in gone if path.startswith(kept)}
            if len(lost) > len(there):
                doubtful.update(lost)
            self.report.missing = len(doubtful)
            gone = [path for path in gone if path not in doubtful]
        gone += self._outdated
        self._table.remove(gone)
        self.report.removed = len(gone)
