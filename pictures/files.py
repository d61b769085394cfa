"""Finds and reads the pictures of a folder."""

from __future__ import annotations

import collections
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipserve.image_formats import FORMATS
from clipserve.images import ImageLimits
from pictures.errors import PicturesError
from pictures.exclusions import MARKER, Exclusions
from pictures.paths import path_to_text, printable

# Files that are expected to hold a picture. HEIC is asked for even where the server cannot decode it, so
# that each is listed with the reason instead of being passed over.
ENDINGS = frozenset(ending.encode() for format in FORMATS.values() for ending in format.endings)

# What the server takes by default; a larger file is not even read.
MAX_BYTES = ImageLimits().max_bytes


@dataclass(frozen=True)
class FoundFile:
    """A file that should hold a picture.

    Attributes:
        path: in text form, absolute.
        location: what to open.
        size: bytes.
        mtime_ns: time of the last change.
    """

    path: str
    location: bytes
    size: int
    mtime_ns: int


@dataclass
class Listing:
    """What lies in a folder.

    Attributes:
        pictures: sorted by path.
        skipped: path and reason of what looks like a picture or a folder, and is not taken.
        unreadable_folders: paths of folders whose contents are not known.
        unreadable_files: paths of files that are there, and of which nothing is known.
        other_endings: how many files of which ending were passed over.
        excluded_folders: how many folders which pattern of `pictures.exclusions` left out, with all
            below them.
        excluded_files: how many files that look like pictures which pattern left out.
    """

    pictures: list[FoundFile] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unreadable_folders: list[str] = field(default_factory=list)
    unreadable_files: set[str] = field(default_factory=set)
    other_endings: collections.Counter[str] = field(default_factory=collections.Counter)
    excluded_folders: collections.Counter[str] = field(default_factory=collections.Counter)
    excluded_files: collections.Counter[str] = field(default_factory=collections.Counter)


@dataclass(frozen=True)
class Contents:
    """A file's bytes, with the size and time that belong to them."""

    data: bytes
    mtime_ns: int
    sha256: str


def list_pictures(root: Path, exclude: Sequence[str] = ()) -> Listing:
    """Walks a folder; symbolic links below it are not followed, so that no loop can catch it.

    Args:
        root: the folder; its own name and place are never excluded.
        exclude: patterns of what is left out besides `pictures.exclusions.DEFAULTS`.

    Raises:
        PicturesError: no such folder, it cannot be read, or what should be a pattern is none.
    """
    start = os.fsencode(root.resolve())
    if not os.path.isdir(start):  # noqa: PTH112  # bytes
        raise PicturesError(f"{printable(str(root))}: no such folder; name one: make index IMAGES=folder")
    listing = Listing()
    exclusions = Exclusions(start, exclude)
    # Those of a person are told of also where they leave nothing out.
    listing.excluded_files.update({pattern: 0 for pattern in exclude if not pattern.startswith("!")})
    folders = [start]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as scan:
                entries = list(scan)
        except OSError as error:
            if folder == start:
                raise PicturesError(f"{printable(str(root))}: cannot be read: {error.strerror}") from error
            text = path_to_text(folder)
            listing.unreadable_folders.append(text)
            listing.skipped.append((text, f"the folder cannot be read: {error.strerror}"))
            continue
        if folder != start and any(entry.name == MARKER for entry in entries):
            listing.excluded_folders[MARKER.decode()] += 1
            continue
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            ending = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  # bytes
            if not is_folder and not entry.is_symlink() and ending not in ENDINGS:
                listing.other_endings[path_to_text(ending) or "no ending"] += 1
                continue
            below = entry.path[len(start.rstrip(b"/")) + 1 :]
            pattern = exclusions.match(below, is_folder=is_folder)
            if pattern is not None:
                (listing.excluded_folders if is_folder else listing.excluded_files)[pattern] += 1
            elif is_folder:
                folders.append(entry.path)
            else:
                _sort_in(entry, listing)
    listing.pictures.sort(key=lambda found: found.path)
    return listing


def _sort_in(entry: os.DirEntry[bytes], listing: Listing) -> None:
    text = path_to_text(entry.path)
    if entry.is_symlink():
        listing.skipped.append((text, "a symbolic link, not followed"))
        return
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return  # gone since the folder was listed
    except OSError as error:
        # As on a network disk whose server is away.
        listing.unreadable_files.add(text)
        listing.skipped.append((text, f"cannot be read: {error.strerror}"))
        return
    if not stat.S_ISREG(status.st_mode):
        listing.skipped.append((text, "not a regular file"))
    elif status.st_size > MAX_BYTES:
        listing.skipped.append((text, f"{status.st_size} bytes, allowed are {MAX_BYTES}"))
    elif status.st_size == 0:
        listing.skipped.append((text, "the file is empty"))
    else:
        listing.pictures.append(FoundFile(text, entry.path, status.st_size, status.st_mtime_ns))


def read_contents(found: FoundFile) -> Contents:
    """Reads a found file.

    Raises:
        OSError: it cannot be read, or has become larger than is allowed.
    """
    # Not blocking, not following: between listing and reading, a pipe or a link may have taken its place.
    descriptor = os.open(found.location, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(descriptor, "rb") as stream:  # noqa: PTH123  # a descriptor
        # Before the bytes: a change while they are read makes the file look changed the next time.
        status = os.fstat(descriptor)
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(0, f"more than {MAX_BYTES} bytes")
    return Contents(data, status.st_mtime_ns, hashlib.sha256(data).hexdigest())
