"""WebP: chunks, frames and a canvas that are not in its bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable

from reliability.costly.plain import SIZE, plain_file


def _riff(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _webp(before: bytes = b"", after: bytes = b"", canvas: tuple[int, int] = SIZE, flags: int = 0) -> bytes:
    plain = plain_file("WEBP")[12:]
    sides = b"".join(struct.pack("<I", side - 1)[:3] for side in canvas)
    extended = b"VP8X" + struct.pack("<II", 10, flags) + sides
    return _riff(extended + before + plain + after)


def _webp_frames(count: int) -> bytes:
    plain = plain_file("WEBP")[12:]
    sides = b"".join(struct.pack("<I", side - 1)[:3] for side in SIZE)
    frame = b"ANMF" + struct.pack("<I", 16 + len(plain)) + bytes(6) + sides + b"\x0a\0\0\0" + plain
    extended = b"VP8X" + struct.pack("<II", 10, 2) + sides
    return _riff(extended + b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame * count)


FILES: dict[str, Callable[[], bytes]] = {
    "WebP, empty chunks": lambda: _webp(after=b"abcd\0\0\0\0" * 2_000_000),
    "WebP, empty chunks before the pixels": lambda: _webp(before=b"abcd\0\0\0\0" * 2_000_000),
    "WebP, frames": lambda: _webp_frames(150_000),
    "WebP, canvas of 16,384 x 16,384": lambda: _webp(canvas=(16_384, 16_384)),
    "WebP, lossless, 12 million pixels": lambda: plain_file("WEBP", (3_500, 3_500), lossless=True, method=0),
}
