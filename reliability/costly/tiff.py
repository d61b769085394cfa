"""TIFF: many tags, strips without end and tiles that are not there; an Exif directory, which is a TIFF's."""

from __future__ import annotations

import struct
from collections.abc import Callable

from reliability.costly.plain import BYTES


def _tiff(entries: list[tuple[int, int, int, int]], more: bytes = b"", following: int = 0) -> bytes:
    """A TIFF of one directory: tag, type, count and value or offset of each entry; `more` lies at its end."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (
        b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + struct.pack("<I", following) + more
    )


def _plain(**changed: tuple[int, int, int]) -> list[tuple[int, int, int, int]]:
    """The entries of a grey picture, some with another type, count and value."""
    tags = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "strips": 273}
    tags |= {"samples": 277, "rows": 278, "counts": 279}
    tags |= {"tile_width": 322, "tile_height": 323, "tiles": 324, "tile_counts": 325}
    values = {"width": (4, 1, 100), "height": (4, 1, 100), "bits": (3, 1, 8), "compression": (3, 1, 1)}
    values |= {"photometric": (3, 1, 1), "strips": (4, 1, 200), "samples": (3, 1, 1), "rows": (4, 1, 100)}
    values |= {"counts": (4, 1, 10_000)}
    values |= changed
    return sorted((tags[name], *value) for name, value in values.items())


def exif_tags(count: int) -> bytes:
    """The bytes of an Exif directory, each tag with a value that lies outside of it."""
    entries = b"".join(struct.pack("<HHII", tag, 5, 1, 8) for tag in range(1, count + 1))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + bytes(4)


FILES: dict[str, Callable[[], bytes]] = {
    "TIFF, 65,535 tags": lambda: _tiff([(tag, 3, 1, 1) for tag in range(1, 65_536)]),
    "TIFF, 4 million strips": lambda: _tiff(_plain(strips=(4, 4_000_000, 200)), bytes(16_000_200)),
    "TIFF, 4 million numbers of bits": lambda: _tiff(_plain(bits=(3, 4_000_000, 200)), bytes(8_000_200)),
    "TIFF, strips of a line": lambda: _tiff(
        _plain(strips=(4, 19_000, 200), rows=(4, 1, 1), height=(4, 1, 19_000), width=(4, 1, 190)),
        bytes(76_200),
    ),
    "TIFF, a tile of 60,000 x 60,000": lambda: _tiff(
        _plain(
            tile_width=(4, 1, 60_000), tile_height=(4, 1, 60_000), tiles=(4, 1, 200), compression=(3, 1, 5)
        ),
        bytes(20_000),
    ),
    "TIFF, LZMA": lambda: _tiff(_plain(compression=(3, 1, 34_925)), bytes(20_000)),
    "TIFF, page that follows itself": lambda: _tiff(_plain(), bytes(20_000), following=8),
    "TIFF, directory beyond the end": lambda: b"II*\0\xff\xff\xff\x7f" + bytes(100),
    "BigTIFF, 2^60 tags": lambda: b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60) + bytes(BYTES),
}
