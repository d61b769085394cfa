"""PNG: chunks without end, and small ones that unpack to gigabytes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from reliability.costly.plain import SIZE
from reliability.costly.tiff import exif_tags


def _chunk(kind: bytes, payload: bytes = b"") -> bytes:
    checksum = zlib.crc32(kind + payload)
    return struct.pack(">I4s", len(payload), kind) + payload + struct.pack(">I", checksum)


def _png(before: bytes = b"", within: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG with something before its pixels, between two halves of them, and after them."""
    rows = zlib.compress((b"\0" + b"\x80" * SIZE[0]) * SIZE[1])
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, 8, 0, 0, 0, 0))
    first, second = _chunk(b"IDAT", rows[:10]), _chunk(b"IDAT", rows[10:])
    return b"\x89PNG\r\n\x1a\n" + header + before + first + within + second + after + _chunk(b"IEND")


def _text(kind: bytes, count: int, size: int) -> bytes:
    middle = b"\0\0" if kind == b"zTXt" else b"\0\1\0\0\0"
    packed = zlib.compress(b"a" * size, 9)
    return b"".join(_chunk(kind, b"k%d" % number + middle + packed) for number in range(count))


FRAME = struct.pack(">IIIIIHHBB", 0, *SIZE, 0, 0, 1, 1, 0, 0)
FILES: dict[str, Callable[[], bytes]] = {
    "PNG, empty pixel chunks": lambda: _png(within=_chunk(b"IDAT") * 1_500_000),
    "PNG, empty private chunks": lambda: _png(_chunk(b"prIv") * 1_500_000),
    "PNG, empty chunks after the pixels": lambda: _png(after=_chunk(b"prIv") * 1_500_000),
    "PNG, small texts": lambda: _png(_chunk(b"tEXt", b"k\0v") * 1_200_000),
    "PNG, texts that unpack to 62 MB": lambda: _png(_text(b"zTXt", 62, 1_000_000)),
    "PNG, texts that unpack to gigabytes": lambda: _png(_text(b"zTXt", 10_000, 1_000_000)),
    "PNG, international texts that unpack": lambda: _png(_text(b"iTXt", 10_000, 1_000_000)),
    "PNG, a profile that unpacks to 100 MB": lambda: _png(
        _chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(100_000_000), 9))
    ),
    "PNG, frame controls": lambda: _png(_chunk(b"acTL", bytes(8)) + _chunk(b"fcTL", FRAME) * 400_000),
    "PNG, Exif of 65,535 tags": lambda: _png(_chunk(b"eXIf", exif_tags(65_535))),
    "PNG, transparency of grey, 25 million pixels": lambda: _gradient("LA", 5_000),
    "PNG, transparency of colour, 28 million pixels": lambda: _gradient("RGBA", 5_290),
    "PNG, header of 2,147,483,647 x 1": lambda: _png_header(),
}


def _png_header() -> bytes:
    data = bytearray(_png())
    data[16:24] = struct.pack(">II", 2**31 - 1, 1)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def _gradient(mode: str, side: int) -> bytes:
    """A picture that is half-transparent everywhere, so that no tile of it is simply copied."""
    stream = io.BytesIO()
    picture = Image.new(mode, (side, side), (128,) * (len(mode) - 1) + (100,))
    picture.save(stream, "PNG")
    return stream.getvalue()
