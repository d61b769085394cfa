"""Equal and nearly equal pictures of the table, in groups, as the page shows them."""

from __future__ import annotations

import asyncio
import datetime
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from pictures.facts import UNKNOWN
from pictures.table import PictureTable
from search.duplicates import THRESHOLD, Duplicates, Equal, Similar, read_json
from search.errors import SearchError
from serving.local import ROOT

# Least cosine similarity of what counts as nearly equal, in words by what `search.duplicates` measured.
THRESHOLDS = {
    0.99: "of another size or quality",
    THRESHOLD: "also a little brighter or cut",
    0.97: "also some that only look so",
    0.95: "also what looks much alike",
}
KINDS = ("", "equal", "similar")

GROUPS = 20  # that are sent at once; more follow as one scrolls
MEMBERS = 60  # of a group that are shown
MAX_GROUPS = 1_000_000  # beyond which nobody scrolls

# Of comparisons: that of one is scrolled through while another threshold is tried.
HELD = 4


@dataclass(frozen=True)
class Member:
    """A picture of a group.

    Attributes:
        path: in text form, see `pictures.paths`.
        folder: of it, with its last slash.
        thumbnail: a JPEG.
        facts: size, pixels, date, and how similar it is to the first, in words.
    """

    path: str
    folder: str
    thumbnail: bytes
    facts: list[str]


@dataclass(frozen=True)
class Group:
    """Pictures that are equal, or nearly so; `more` of them are not shown."""

    title: str
    members: list[Member]
    more: int


@dataclass(frozen=True)
class Part:
    """What is sent of all groups at once: a sentence about all, some groups, and the offset of the next."""

    told: str
    groups: list[Group]
    next: int | None


class Copies:
    """Compares the table's pictures with each other, once for every state of the table."""

    def __init__(self) -> None:
        self._found: LRUCache[tuple[PictureTable, int, float], Duplicates] = LRUCache(HELD)
        self._turn = asyncio.Lock()

    async def compare(self, table: PictureTable, threshold: float, *, again: bool) -> Duplicates:
        """All groups of the table.

        Args:
            table: as it is now.
            threshold: least cosine similarity, one of `THRESHOLDS`.
            again: whether a table that has changed since is compared again; not while one scrolls.

        Raises:
            SearchError: it could not be done.
        """
        async with self._turn:
            key = table, table.version, threshold
            held = [known for known in self._found if known[::2] == key[::2]]
            if held and not again:
                key = held[-1]
            if key not in self._found:
                self._found[key] = await _in_a_process_of_its_own(table, threshold)
            return self._found[key]


async def _in_a_process_of_its_own(table: PictureTable, threshold: float) -> Duplicates:
    """What `make duplicates JSON=1` finds; the memory of every picture's embedding goes with the process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "search", "duplicates", "--json"),
        *(f"--table={table.folder.resolve()}", f"--threshold={threshold}"),
        cwd=ROOT,
        env=os.environ | {"PYTHONUTF8": "1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:  # the page is ended meanwhile
            process.kill()
    if process.returncode:
        reason = (errors.decode(errors="replace").strip().splitlines() or ["it was ended"])[-1]
        raise SearchError(f"the pictures could not be compared: {reason}")
    return read_json(output.decode())


def part(table: PictureTable, found: Duplicates, kind: str, offset: int) -> Part:
    """The groups from `offset` on, with what is known of their files; `kind` is one of `KINDS`."""
    equal = found.equal if kind != "similar" else []
    similar = found.similar if kind != "equal" else []
    end = offset + GROUPS
    rows: list[tuple[str, tuple[str, ...], Sequence[float | None]]] = [
        (f"{len(group.paths):,} equal files, {readable_size(group.size)} each", group.paths, ())
        for group in equal[offset:end]
    ]
    rows += [
        (f"{len(group.paths):,} nearly equal pictures", group.paths, group.scores)
        for group in similar[max(0, offset - len(equal)) : max(0, end - len(equal))]
    ]
    groups = [_group(table, *row) for row in rows]
    told = []
    if kind != "similar":
        told.append(
            _counted("equal files", equal, f" ({readable_size(found.bytes_of_copies)} more than one of each)")
        )
    if kind != "equal":
        told.append(_counted("nearly equal pictures", similar, ""))
    # Rows may go between these reads, while an indexer writes.
    shown = [group for group in groups if len(group.members) > 1]
    return Part(f"{', '.join(told)}.", shown, end if end < len(equal) + len(similar) else None)


def _counted(what: str, groups: Sequence[Equal | Similar], more: str) -> str:
    count = sum(len(group.paths) for group in groups)
    if not groups:
        return f"no {what}"
    return f"{count:,} {what} in {len(groups):,} group{'s' if len(groups) > 1 else ''}{more}"


def _group(table: PictureTable, title: str, paths: Sequence[str], scores: Sequence[float | None]) -> Group:
    shown = paths[:MEMBERS]
    states, facts, thumbnails = table.states(shown), table.facts(shown), table.thumbnails(shown)
    members = []
    for number, path in enumerate(shown):
        if path not in states or path not in thumbnails:
            continue
        state, of = states[path], facts.get(path, UNKNOWN)
        when = of.taken or datetime.datetime.fromtimestamp(state.mtime_ns / 1e9)
        known = [
            readable_size(state.size),
            f"{of.width} × {of.height}" if of.width else "",
            f"{'taken' if of.taken else 'changed'} {when:%Y-%m-%d %H:%M}",
            f"cosine {scores[number]:.4f}" if number and scores else "",
        ]
        folder = f"{path.rpartition('/')[0]}/"
        members.append(Member(path, folder, thumbnails[path], [*filter(None, known)]))
    return Group(title, members, len(paths) - len(shown))


def readable_size(size: int) -> str:
    """A file's size in kB or MB, of 1,000 and a million bytes."""
    return f"{-(-size // 1000)} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"
