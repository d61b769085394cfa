"""What lies in a folder of pictures and is none of a person's pictures: thumbnails, bins, copies of copies.

Patterns are those of `.gitignore`, by the library pathspec: `name`, `name/` for folders only, `*`, `?`,
`[a-z]`, `**`, a slash elsewhere for a place below the folder that is indexed, `!` to take in what an earlier
one leaves out. As in a part of a path (`pictures.paths.folded`), case and the encoding of accents do not
count.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import pathspec

from pictures.errors import PicturesError
from pictures.paths import folded, printable

DEFAULTS = (
    # Hidden: .thumbnails, .Trash-1000, .Trashes, .trashed-… of Android, ._copies of macOS, .@__thumb of QNAP.
    ".*",
    # Linux: what a file system's check found.
    "lost+found/",
    # Windows, where it wrote to the disk.
    "$RECYCLE.BIN/",
    "System Volume Information/",
    # Synology: thumbnails, bin, snapshots.
    "@eaDir/",
    "#recycle/",
    "#snapshot/",
    "@sharesnap/",
    "@tmp/",
    # QNAP: bin, snapshots.
    "@Recycle/",
    "@Recently-Snapshot/",
    # macOS: archives' extra files, the bin of a share, reduced copies in the libraries of its programs.
    "__MACOSX/",
    "Network Trash Folder/",
    "Temporary Items/",
    "**/*.photoslibrary/resources/",
    "**/*.*photolibrary/Thumbnails/",  # iPhoto's, and .migratedphotolibrary
    "**/*.*photolibrary/Previews/",
    "**/*.*aplibrary/Thumbnails/",  # Aperture's, and .migratedaplibrary
    "**/*.*aplibrary/Previews/",
    # Lightroom's previews.
    "*.lrdata/",
    # Nextcloud's, in its data folder.
    "**/appdata_*/preview/",
)

# A folder that holds a file of this name says itself that it is not for galleries: Android's convention.
MARKER = b".nomedia"


def add_exclude_option(parser: argparse.ArgumentParser) -> None:
    """`--exclude` of a command line: a list of patterns, each word of it `PATTERN|PATTERN`."""
    parser.add_argument(
        "--exclude",
        type=_read_patterns,
        action="extend",
        default=[],
        metavar="PATTERN|PATTERN",
        help="leave out what matches, as in .gitignore; besides hidden files, bins and thumbnails",
    )


def _read_patterns(text: str) -> list[str]:
    """The patterns of one word of a command line, `PATTERN|PATTERN`."""
    return [pattern.strip() for pattern in text.split("|") if pattern.strip()]


class Exclusions:
    """The default patterns with those of a person after them; the last one that matches decides.

    Args:
        root: the folder that is indexed, absolute.
        patterns: further ones. One that begins with `root` is meant below it.

    Raises:
        PicturesError: one is no pattern.
    """

    def __init__(self, root: bytes, patterns: Sequence[str] = ()):
        self.patterns = (*DEFAULTS, *patterns)
        start = os.fsdecode(root).rstrip("/") + "/"
        lines = []
        for pattern in self.patterns:
            line = "/" + pattern.removeprefix(start) if pattern.startswith(start) else pattern
            # There are no comments among words of a command line, and #recycle is a folder.
            line = "\\" * line.startswith("#") + line
            try:
                # One by one, for the message to name it.
                pathspec.GitIgnoreSpec.from_lines([line])
            except ValueError as error:
                raise PicturesError(
                    f"EXCLUDE: {printable(pattern)!r} is no pattern; patterns are those of .gitignore, such "
                    "as 'Screenshots/' or '*.gif'"
                ) from error
            lines.append(folded(line))
        self._spec = pathspec.GitIgnoreSpec.from_lines(lines)

    def match(self, path: bytes, *, is_folder: bool) -> str | None:
        """The pattern, as it was written, that leaves a path out; None if it is taken.

        Args:
            path: below the root, without a slash at its start.
            is_folder: what it is.
        """
        found = self._spec.check_file(folded(os.fsdecode(path)) + "/" * is_folder)
        return self.patterns[found.index] if found.include and found.index is not None else None
