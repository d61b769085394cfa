"""GIF: blocks and pieces of blocks without end."""

from __future__ import annotations

from collections.abc import Callable

from reliability.costly.plain import BYTES, plain_file


def _gif(blocks: bytes) -> bytes:
    data = plain_file("GIF", mode="P")
    start = 13 + (3 << (data[10] & 7) + 1)
    return data[:start] + blocks + data[start:]


def _gif_frame() -> bytes:
    data = bytearray(_gif(b""))
    place = data.index(b"\x2c", 13 + (3 << (data[10] & 7) + 1)) + 5
    data[place : place + 4] = b"\xff" * 4
    return bytes(data)


FILES: dict[str, Callable[[], bytes]] = {
    "GIF, extensions": lambda: _gif(b"\x21\xff\0" * 6_000_000),
    "GIF, graphic controls": lambda: _gif(b"\x21\xf9\x04\0\0\0\0\0" * 2_000_000),
    "GIF, a comment of many pieces": lambda: _gif(b"\x21\xfe" + b"\1a" * (BYTES // 2) + b"\0"),
    "GIF, an application's many pieces": lambda: _gif(b"\x21\xff" + b"\1a" * (BYTES // 2) + b"\0"),
    "GIF, bytes that are no block": lambda: _gif(b"\x01" * BYTES),
    "GIF, frame of 65,535 x 65,535": _gif_frame,
}
