"""Colour profiles that are long, damaged or programs, in pictures of several formats."""

from __future__ import annotations

import struct
from collections.abc import Callable

from reliability.costly.plain import plain_file


def _profile(tag: bytes, payload: bytes, size: int = 0) -> bytes:
    """An RGB display profile of one tag."""
    body = struct.pack(">I4sII", 1, tag, 144, len(payload)) + payload + bytes(size)
    header = bytearray(128)
    header[0:4] = struct.pack(">I", 128 + len(body))
    header[8:12], header[12:16], header[16:20], header[20:24] = b"\x04\x30\0\0", b"mntr", b"RGB ", b"XYZ "
    header[36:40] = b"acsp"
    return bytes(header) + body


def _elements(count: int) -> bytes:
    """A program of many steps, each three curves of one value."""
    matrix = b"matf" + struct.pack(">IHH", 0, 3, 3) + struct.pack(">12f", 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0)
    table = struct.pack(">II", 12 + 8 * count + 4, len(matrix)) * count
    return b"mpet" + struct.pack(">IHHI", 0, 3, 3, count) + table + bytes(4) + matrix


FILES: dict[str, Callable[[], bytes]] = {
    "profile with a program of 100,000 steps": lambda: plain_file(
        "PNG", icc_profile=_profile(b"D2B0", _elements(100_000))
    ),
    "profile of 10 MB": lambda: plain_file(
        "TIFF", icc_profile=_profile(b"A2B0", b"mft2" + bytes(40), 10_000_000)
    ),
    "profile of a damaged table": lambda: plain_file(
        "PNG", icc_profile=_profile(b"A2B0", b"mft2" + b"\xff" * 100)
    ),
    "profile of noise": lambda: plain_file("JPEG", icc_profile=bytes(range(256)) * 200),
}
