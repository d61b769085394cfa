"""Shows that the files of an unpacked archive are those that were packaged, and keeps large ones once.

It finds damage: a file cut off, left over, forgotten or exchanged by mistake. It is no protection from
whoever can write into the archive, since the list lies in it and the code that reads it, too.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from clipserve.errors import SpecError

# Lines of `<sha256>  <path>`, as `sha256sum --check` reads them.
SUMS_FILE = "SHA256SUMS"

# Not listed: the archiver's own manifest, and what Python writes when it imports.
UNLISTED_FOLDERS = ("MAR-INF", "__pycache__")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def verify_archive_files(folder: Path) -> None:
    """Checks every file of the archive.

    Raises:
        SpecError: the list or a file is missing, a file was changed, or one is not on the list.
    """
    try:
        lines = (folder / SUMS_FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{folder}: no {SUMS_FILE} that can be read; run 'make archive' again") from error
    for line in lines:
        expected, _, name = line.partition("  ")
        try:
            found = file_sha256(folder / name)
        except OSError as error:
            raise SpecError(f"{name} is missing from the archive; run 'make archive' again") from error
        if found != expected:
            raise SpecError(f"{name} was changed after it was packaged; run 'make archive' again")
    listed = {line.partition("  ")[2] for line in lines} | {SUMS_FILE}
    for path in sorted(folder.rglob("*")):
        found_at = path.relative_to(folder)
        if found_at.as_posix() in listed or path.is_dir() or set(found_at.parts) & set(UNLISTED_FOLDERS):
            continue
        raise SpecError(f"{found_at} was added after the archive was packaged; run 'make archive' again")


def share_equal_files(folder: Path) -> None:
    """Makes files that archives unpacked beside this one have as well one file with several names.

    Several endpoints carry one encoder, and each archive is unpacked by itself. What workers map of a file
    (`clipserve.mapping`) is in memory once for all of them only where it is one file; on disk, too.

    Args:
        folder: of an archive whose files have been verified; what is shared has the same bytes.
    """
    for path in folder.glob("*.pt*"):
        own = path.stat()
        # The oldest that is there stays: of workers that start at once all take that one, and none takes one
        # that is about to be replaced.
        for other in sorted(_files_beside(folder, path.name), key=_age):
            if _age(other) >= _age((path, own)):
                break
            beside, status = other
            # Nobody else may write to it.
            trusted = status.st_uid == own.st_uid and not status.st_mode & 0o022
            alike = (status.st_dev, status.st_size) == (own.st_dev, own.st_size)
            # Archives come and go; and nothing is lost where it cannot be shared.
            with contextlib.suppress(OSError):
                if trusted and alike and filecmp.cmp(path, beside, shallow=False):
                    # Beside the archive, of whose folder every file is on a list.
                    second = folder.with_name(f".{path.name}.{os.getpid()}")
                    os.link(beside, second)
                    second.replace(path)
                    break


def _files_beside(folder: Path, name: str) -> Iterator[tuple[Path, os.stat_result]]:
    """Files of that name in the folders beside one."""
    for path in folder.parent.glob(f"*/{name}"):
        with contextlib.suppress(OSError):
            yield path, path.stat()


def _age(file: tuple[Path, os.stat_result]) -> tuple[int, int]:
    """By which the older comes first, and of equally old ones always the same."""
    return file[1].st_mtime_ns, file[1].st_ino
