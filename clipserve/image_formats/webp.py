"""WebP."""

from __future__ import annotations

import re
import struct

from clipserve.image_formats.base import Container, ImageFormat, chunks


def walk_webp(data: bytes, most: int) -> Container:
    """Walks over the chunks of a WebP, one for each frame of an animation."""
    found = Container(called="chunks")
    for kind, start, _ in chunks(data, 12, found, most, "little", kind_at=0, tail=0, even=True):
        head = data[start : start + 10]
        if kind == b"VP8X" and len(head) == 10:
            size = int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
            found.widen(*size)
        elif kind == b"VP8 " and len(head) == 10:
            found.widen(*(side & 0x3FFF for side in struct.unpack_from("<HH", head, 6)))
        elif kind == b"VP8L" and len(head) == 10:
            bits = int.from_bytes(head[1:5], "little")
            found.widen((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    return found


FORMATS = (ImageFormat("WEBP", (".webp",), re.compile(rb"(?s)RIFF....WEBP"), walk_webp, "image/webp", 14),)
