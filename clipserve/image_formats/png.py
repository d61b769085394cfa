"""PNG, and its animations."""

from __future__ import annotations

import re
import struct

from clipserve.image_formats.base import Container, ImageFormat, chunks


def walk_png(data: bytes, most: int) -> Container:
    """Walks over the chunks of a PNG."""
    found = Container(called="chunks")
    for kind, start, length in chunks(data, 8, found, most, "big", kind_at=4, tail=4, even=False):
        if kind == b"IHDR" and length >= 8 and start + 8 <= len(data):
            found.widen(*struct.unpack_from(">II", data, start))
        elif kind == b"IEND":
            break
    return found


FORMATS = (ImageFormat("PNG", (".png", ".apng"), re.compile(rb"\x89PNG\r\n\x1a\n"), walk_png, "image/png"),)
