"""BMP: runs of pixels, packed for a decoder that is written in Python."""

from __future__ import annotations

import struct
from collections.abc import Callable

from reliability.costly.plain import BYTES


def _bmp(width: int, height: int, compression: int, packed: bytes) -> bytes:
    bits, palette = (8, bytes(1024)) if compression == 1 else (4, bytes(64))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(packed), 0, 0, 0, 0)
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(packed), 0, 0, offset) + header + palette + packed


FILES: dict[str, Callable[[], bytes]] = {
    "BMP, runs of one pixel": lambda: _bmp(5_000, 5_000, 1, b"\1\1" * (BYTES // 2)),
    "BMP, lines that end at once": lambda: _bmp(5_000, 5_000, 1, b"\0\0" * 5_000),
    "BMP, runs beyond a line": lambda: _bmp(100, 100, 1, b"\xff\1" * (BYTES // 2)),
    "BMP, runs of half bytes": lambda: _bmp(5_000, 5_000, 2, b"\xff\x12" * 100_000),
    "BMP, 1.4 million pixels in runs": lambda: _bmp(
        1_200, 1_200, 2, (b"\xff\x12" * 4 + b"\xb4\x12\0\0") * 1_200
    ),
}
