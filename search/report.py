"""What a run of the indexer did, and what is told of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pictures.files import Listing
from pictures.paths import printable
from pictures.reader import RECALL_AT
from search.errors import SearchError

# Sizes, and addresses in what a decoder says.
NUMBER = re.compile(r"0x[0-9a-f]+|[0-9]+")

# All that is not in the table, in its folder.
NOT_INDEXED = "not_indexed.tsv"
# Pictures of each reason that are named on the terminal.
EXAMPLES = 3


@dataclass
class Report:
    """What a run did; each file is in one count.

    Attributes:
        listing: of the folder; counts what is passed over and left out.
        embedded: files that the server embedded, and which are in the table.
        written: files whose rows were added or replaced; more than `embedded` where contents were known, as
            of moved files.
        changed: of these, rows of a path whose contents were others before.
        removed: rows of files that are gone, or are no pictures any more.
        missing: rows of files that are gone, and were kept in doubt.
        unchanged: files whose rows were left alone.
        failed: path and reason of each file that is not in the table, and of each folder that is unreadable.
        failed_list: the file that lists them all, None where there are none.
        seconds: the run took.
        recall: of the ANN index, None where there is none.
    """

    listing: Listing
    embedded: int = 0
    written: int = 0
    changed: int = 0
    removed: int = 0
    missing: int = 0
    unchanged: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    failed_list: Path | None = None
    seconds: float = 0.0
    recall: float | None = None

    @property
    def known(self) -> int:
        """Files in the table whose contents were embedded before, in this run or an earlier one."""
        return self.written - self.embedded

    @property
    def files(self) -> int:
        """All that were found: what lies below folders that are left out or unreadable is not known."""
        listing = self.listing
        skipped = len(listing.skipped) - len(listing.unreadable_folders)
        others = listing.other_endings.total() + listing.excluded_files.total()
        return len(listing.pictures) + skipped + others


def passed_over(listing: Listing) -> str:
    """What lies in a folder besides pictures, in a few words."""
    skipped = [f"{len(listing.skipped)} that cannot be used"] if listing.skipped else []
    return ", ".join([*skipped, *_others(listing), *_left_out(listing)]) or "it is empty"


def _others(listing: Listing) -> list[str]:
    """Every other ending with its count, the most frequent first."""
    counts = sorted(listing.other_endings.items(), key=lambda item: (-item[1], item[0]))
    return [f"{count} {printable(ending)}" for ending, count in counts]


def _left_out(listing: Listing) -> list[str]:
    """Every pattern that left something out, or should have, with its counts."""
    lines = []
    for pattern in sorted(listing.excluded_folders.keys() | listing.excluded_files.keys()):
        folders, files = listing.excluded_folders[pattern], listing.excluded_files[pattern]
        counts = [f"{folders} folders"] * (folders > 0) + [f"{files} files"] * (files > 0)
        lines.append(f"{' and '.join(counts) or 'nothing'} by {printable(pattern)}")
    return lines


def write_failed(folder: Path, failed: Sequence[tuple[str, str]]) -> Path | None:
    """Writes what is not in the table in `folder`, reason and path on a line; no file where there is nothing.

    Raises:
        SearchError: the folder cannot be written.
    """
    path = folder / NOT_INDEXED
    try:
        if not failed:
            path.unlink(missing_ok=True)
            return None
        lines = [f"{printable(reason)}\t{printable(name)}\n" for name, reason in sorted(failed)]
        path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise SearchError(f"{printable(str(path))}: cannot be written: {error.strerror}") from error
    return path


def print_report(report: Report) -> None:
    """Prints what a run did; what is not in the table by its reasons, with a few examples of each."""
    listing = report.listing
    not_indexed = len(report.failed) - len(listing.unreadable_folders)
    print(
        f"{report.files} files in {report.seconds:.1f} s: {report.embedded} embedded, "
        f"{report.known} known by their contents, {report.unchanged} unchanged, {not_indexed} not indexed, "
        f"{listing.other_endings.total()} passed over, {listing.excluded_files.total()} left out"
    )
    print(f"in the table: {report.changed} changed, {report.removed} removed")
    if report.missing:
        print(
            f"{report.missing} files are gone, with a disk or more than are there: their rows are kept, as "
            "disks may be unmounted; the same command without WATCH removes them"
        )
    if report.recall is not None:
        print(f"ANN index: recall@{RECALL_AT} {report.recall:.3f} against exact search")
    if listing.other_endings:
        print(f"passed over by their ending: {', '.join(_others(listing))}")
    if left_out := _left_out(listing):
        print(f"left out: {', '.join(left_out)}")
    if not report.failed:
        return
    folders = len(listing.unreadable_folders)
    print(f"not indexed: {not_indexed}" + f", and all below {folders} unreadable folders" * (folders > 0))
    for paths in _by_reason(report.failed):
        for path, reason in paths[:EXAMPLES]:
            print(f"  {printable(path)}: {printable(reason)}")
        if len(paths) > EXAMPLES:
            print(f"    and {len(paths) - EXAMPLES} more for this reason")
    if report.failed_list is not None:
        print(f"all of them, each with its reason: {printable(str(report.failed_list))}")


def _by_reason(failed: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Groups by reason, the largest first; reasons that differ in their numbers only are one."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for path, reason in sorted(failed):
        groups.setdefault(NUMBER.sub("0", reason), []).append((path, reason))
    return sorted(groups.values(), key=len, reverse=True)
