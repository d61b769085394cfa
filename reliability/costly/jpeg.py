"""JPEG: segments, scans and markers without end."""

from __future__ import annotations

import struct
from collections.abc import Callable

from reliability.costly.plain import BYTES, plain_file
from reliability.costly.tiff import exif_tags


def _jpeg(inserted: bytes, **options: object) -> bytes:
    """A JPEG with something between its start marker and its first segment."""
    data = plain_file("JPEG", **options)  # type: ignore[arg-type]
    return data[:2] + inserted + data[2:]


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def _photoshop(resources: int) -> bytes:
    return _segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\0" * resources)


def _jpeg_scans(size: int, scans: int) -> bytes:
    data = plain_file("JPEG", (size, size), "L", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def _frames() -> bytes:
    data = plain_file("JPEG")
    frame = data.index(b"\xff\xc0")
    return data[:frame] + data[frame : frame + 19] * 500_000 + data[frame:]


def _lying_frame(width: int, height: int, **options: object) -> bytes:
    data = bytearray(plain_file("JPEG", **options))  # type: ignore[arg-type]
    frame = data.index(b"\xff\xc2" if options else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


FILES: dict[str, Callable[[], bytes]] = {
    "JPEG, tiny Exif segments": lambda: _jpeg(_segment(0xE1, b"Exif\0\0") * 800_000),
    "JPEG, large Exif segments": lambda: _jpeg(_segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 290),
    "JPEG, Exif segments of a kilobyte": lambda: _jpeg(_segment(0xE1, b"Exif\0\0" + bytes(1_000)) * 18_000),
    "JPEG, comments": lambda: _jpeg(_segment(0xFE, b"") * 4_000_000),
    "JPEG, JFIF segments": lambda: _jpeg(_segment(0xE0, b"JFIF\0\1\1\1\0\1\0\1\0\0") * 1_000_000),
    "JPEG, pieces of a profile": lambda: _jpeg(_segment(0xE2, b"ICC_PROFILE\0\1\xff") * 1_000_000),
    "JPEG, Photoshop resources": lambda: _jpeg(_photoshop(5_000) * 300),
    "JPEG, small Photoshop segments": lambda: _jpeg(_photoshop(1) * 500_000),
    "JPEG, XMP segments": lambda: _jpeg(_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0x") * 500_000),
    "JPEG, quantisation tables": lambda: _jpeg(_segment(0xDB, bytes(65)) * 270_000),
    "JPEG, Huffman tables": lambda: _jpeg(_segment(0xC4, bytes(17)) * 900_000),
    "JPEG, frames": _frames,
    "JPEG, restart intervals": lambda: _jpeg(_segment(0xDD, b"\0\0") * 3_000_000),
    "JPEG, padding of 255": lambda: _jpeg(b"\xff" * BYTES),
    "JPEG, padding of zeros": lambda: _jpeg(_segment(0xFE, b"") + bytes(BYTES)),
    "JPEG, escaped 255s": lambda: _jpeg(b"\xff\0" * (BYTES // 2)),
    "JPEG, restart markers before the frame": lambda: _jpeg(b"\xff\xd0" * (BYTES // 2)),
    "JPEG, end markers before the frame": lambda: _jpeg(b"\xff\xd9" * (BYTES // 2)),
    "JPEG, 1,000 scans": lambda: _jpeg_scans(4_990, 1_000),
    "JPEG, 50 scans of 60 million pixels": lambda: _jpeg_scans(7_750, 50),
    "JPEG, scans between padding": lambda: _jpeg_scans(100, 60)[:-2] + b"\xff" * BYTES,
    "JPEG, progressive header of 65,535 x 2,000": lambda: _lying_frame(65_535, 2_000, progressive=True),
    "JPEG, header of 13,000 x 13,000": lambda: _lying_frame(13_000, 13_000),
    "JPEG, Exif of 5,000 tags": lambda: _jpeg(_segment(0xE1, b"Exif\0\0" + exif_tags(5_000))),
}
