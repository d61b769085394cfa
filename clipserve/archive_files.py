"""Proves that the files of an unpacked archive are those that were packaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

from clipserve.errors import SpecError

# Lines of `<sha256>  <path>`, as `sha256sum --check` reads them.
SUMS_FILE = "SHA256SUMS"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def verify_archive_files(folder: Path) -> None:
    """Checks every file that the archive lists.

    Raises:
        SpecError: the list or a file is missing, or a file was changed.
    """
    try:
        lines = (folder / SUMS_FILE).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SpecError(f"{folder}: no {SUMS_FILE}; run 'make archive' again") from error
    for line in lines:
        expected, _, name = line.partition("  ")
        try:
            found = file_sha256(folder / name)
        except OSError as error:
            raise SpecError(f"{name} is missing from the archive; run 'make archive' again") from error
        if found != expected:
            raise SpecError(f"{name} was changed after it was packaged; run 'make archive' again")
