"""Zip files without times and owners: equal contents give equal files."""

from __future__ import annotations

import io
import shutil
import zipfile
from typing import IO

# Earliest time that an entry can have.
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def add_text(target: zipfile.ZipFile, name: str, text: str) -> None:
    """Puts a text into a zip file, likewise."""
    data = text.encode()
    add(target, name, io.BytesIO(data), len(data))


def add(target: zipfile.ZipFile, name: str, reader: IO[bytes], size: int) -> None:
    """Puts a file of `size` bytes into a zip file, uncompressed."""
    entry = zipfile.ZipInfo(name, ZIP_EPOCH)
    entry.external_attr = 0o644 << 16
    entry.file_size = size
    with target.open(entry, "w") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
