"""GIF."""

from __future__ import annotations

import re
import struct

from clipserve.image_formats.base import Container, ImageFormat


def walk_gif(data: bytes, most: int) -> Container:
    """Walks over the blocks of a GIF that stand before the pixels of its first frame."""
    found = Container(called="blocks before the first frame")
    if len(data) < 13:
        return found
    found.widen(*struct.unpack_from("<HH", data, 6))
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    while found.structures <= most and position < len(data):
        found.structures += 1
        kind = data[position]
        if kind == 0x2C:
            if position + 9 <= len(data):
                left, top, width, height = struct.unpack_from("<HHHH", data, position + 1)
                found.width, found.height = max(found.width, left + width), max(found.height, top + height)
            break
        position += 1
        if kind == 0x3B:
            break
        if kind == 0x21:
            position += 1
            while found.structures <= most and position < len(data) and data[position]:
                found.structures += 1
                position += 1 + data[position]
            position += 1
    return found


FORMATS = (ImageFormat("GIF", (".gif",), re.compile(rb"GIF8[79]a"), walk_gif, "image/gif"),)
