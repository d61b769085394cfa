"""BMP."""

from __future__ import annotations

import re
import struct

from clipserve.image_formats.base import Container, ImageFormat


def walk_bmp(data: bytes, most: int) -> Container:
    """Reads the header of a BMP. Run-length coding is decoded in Python, run by run and fill by fill."""
    found = Container(called="hundreds of runs or pixels in run-length coding")
    if len(data) < 26:
        return found
    if int.from_bytes(data[14:18], "little") == 12:
        found.widen(*struct.unpack_from("<HH", data, 18))
        return found
    width, height = struct.unpack_from("<ii", data, 18)
    found.widen(abs(width), abs(height))
    if len(data) >= 34 and data[30] in (1, 2):
        found.structures = max(found.width * found.height, len(data) // 2) // 100
    return found


FORMATS = (ImageFormat("BMP", (".bmp",), re.compile(rb"BM"), walk_bmp, "image/bmp"),)
