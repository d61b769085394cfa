"""TIFF and BigTIFF."""

from __future__ import annotations

import re
import struct

from clipserve.image_formats.base import Container, ImageFormat

# TIFF: tag numbers, and bytes of each value type.
TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS, TIFF_COMPRESSION, TIFF_SAMPLES = 256, 257, 258, 259, 277
TIFF_STRIPS, TIFF_ROWS, TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT, TIFF_TILES = 273, 278, 322, 323, 324
TIFF_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
TIFF_BYTES = frozenset({1, 2, 6, 7})  # types that Pillow reads as a whole
# None, CCITT (three), LZW, JPEG, Deflate (two numbers), PackBits. Of the others, LZMA takes as much memory
# as the file asks for, and the rest are hardly ever met.
TIFF_ADMITTED = frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946})


def walk_tiff(data: bytes, most: int) -> Container:
    """Walks over the tags of a TIFF's first page; strips, tiles and all numbers that tags hold count too."""
    found = Container(called="tags, strips or tiles")
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    try:
        first = struct.unpack_from(f"{order}Q" if big else f"{order}I", data, 8 if big else 4)[0]
        count = struct.unpack_from(f"{order}Q" if big else f"{order}H", data, first)[0]
        position = first + (8 if big else 2)
        values: dict[int, int] = {}
        for _ in range(count):
            found.structures += 1
            tag, kind, number = struct.unpack_from(f"{order}HHQ" if big else f"{order}HHI", data, position)
            if kind not in TIFF_BYTES:
                found.structures += max(0, number - 1) // (2 if tag in (TIFF_STRIPS, TIFF_TILES) else 1)
            if found.structures > most:
                return found
            # Of several of one number, the first counts.
            values.setdefault(tag, _tiff_value(data, order, big, position, kind, number))
            position += 20 if big else 12
    except (struct.error, OverflowError):
        return found
    _judge_tiff(found, values)
    return found


def _tiff_value(data: bytes, order: str, big: bool, position: int, kind: int, number: int) -> int:
    """The largest of a tag's whole numbers; 0 where it holds something else."""
    code = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}.get(kind)
    if code is None or not number:
        return 0
    place = position + (12 if big else 8)
    number = min(number, 16)
    if number * TIFF_TYPES[kind] > (8 if big else 4):
        place = struct.unpack_from(f"{order}Q" if big else f"{order}I", data, place)[0]
    return int(max(struct.unpack_from(f"{order}{number}{code}", data, place)))


def _judge_tiff(found: Container, values: dict[int, int]) -> None:
    found.widen(values.get(TIFF_WIDTH, 0), values.get(TIFF_HEIGHT, 0))
    compression = values.get(TIFF_COMPRESSION, 1)
    if compression not in TIFF_ADMITTED:
        found.refused = f"a TIFF of compression {compression}"
    # One strip or tile at a time, all samples of a pixel or, in planes, fewer.
    width = values.get(TIFF_TILE_WIDTH) or found.width
    height = values.get(TIFF_TILE_HEIGHT) or min(values.get(TIFF_ROWS) or found.height, found.height)
    bits = values.get(TIFF_BITS, 1) * max(1, values.get(TIFF_SAMPLES, 1))
    found.decoder_bytes = width * height * max(8, bits) // 8


FORMATS = (ImageFormat("TIFF", (".tif", ".tiff"), re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), walk_tiff),)
