"""AVIF and HEIC: boxes, properties and items without end."""

from __future__ import annotations

import struct
from collections.abc import Callable

from reliability.costly.plain import plain_file


def _box(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I4s", len(payload) + 8, kind) + payload


def _avif_meta(inserted: bytes, brand: bytes = b"avif") -> bytes:
    """A file whose `meta` box holds what is inserted and nothing else."""
    kind = _box(b"hdlr", bytes(8) + b"pict" + bytes(13))
    return _box(b"ftyp", brand + bytes(4) + brand + b"mif1") + _box(b"meta", bytes(4) + kind + inserted)


def _lying_avif() -> bytes:
    """A picture of 8 million pixels whose boxes say 8 x 8."""
    data = plain_file("AVIF", (4_000, 2_000), speed=10)
    place = data.index(b"ispe") + 8
    return data[:place] + struct.pack(">II", 8, 8) + data[place + 8 :]


def _items(count: int) -> bytes:
    infos = b"".join(
        _box(b"infe", struct.pack(">IHH4s", 2 << 24, number, 0, b"av01")) for number in range(count)
    )
    return _box(b"iinf", struct.pack(">IH", 0, count) + infos)


def _places(items: int, extents: int) -> bytes:
    one = struct.pack(">HHH", 1, 0, extents) + struct.pack(">II", 0, 20) * extents
    return _box(b"iloc", struct.pack(">IBBH", 0, 0x44, 0, items) + one * items)


def _nested(depth: int) -> bytes:
    box = b""
    for _ in range(depth):
        box = _box(b"ipco", box)
    return _box(b"iprp", box)


FILES: dict[str, Callable[[], bytes]] = {
    "AVIF, empty boxes": lambda: plain_file("AVIF") + _box(b"free", b"") * 2_000_000,
    "AVIF, properties": lambda: _avif_meta(_box(b"iprp", _box(b"ipco", _box(b"pixi", bytes(8)) * 900_000))),
    "AVIF, items": lambda: _avif_meta(_items(60_000)),
    "AVIF, items at many places": lambda: _avif_meta(_places(60_000, 4)),
    "AVIF, an item in many pieces": lambda: _avif_meta(_places(40, 60_000)),
    "AVIF, tiles of a grid": lambda: _avif_meta(
        _box(b"iref", bytes(4) + _box(b"dimg", struct.pack(">HH", 1, 60_000) + bytes(120_000)))
    ),
    "AVIF, boxes within boxes": lambda: _avif_meta(_nested(100_000)),
    "AVIF, more pixels than its boxes say": _lying_avif,
    "HEIC, properties": lambda: _avif_meta(
        _box(b"iprp", _box(b"ipco", _box(b"pixi", bytes(8)) * 900_000)), b"heic"
    ),
    "HEIC, items": lambda: _avif_meta(_items(60_000), b"heic"),
    "HEIC, header of 60,000 x 60,000": lambda: _avif_meta(
        _box(b"iprp", _box(b"ipco", _box(b"ispe", struct.pack(">III", 0, 60_000, 60_000)))), b"heic"
    ),
}
