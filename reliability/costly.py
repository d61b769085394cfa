"""Pictures that cost a decoder far more than their bytes and pixels say: small, well-formed, and slow.

Each is within the limit of bytes. What they cost is measured by `python -m benchmarks.pictures`. What can be
made of any format comes from the table of formats; by hand is what repeats the structures of one.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial

from PIL import Image

from clipserve.image_formats import FORMATS

SIZE = (48, 36)  # pixels, of the picture around which things are put
BYTES = 19_000_000  # of the largest files made here


def _file(format: str, size: tuple[int, int] = SIZE, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, "grey" if mode != "P" else 0).save(stream, format, **options)
    return stream.getvalue()


# ---------------------------------------------------------------------------------------------------
# Any format

# As people call them, where Pillow does not.
SHOWN = {"HEIF": "HEIC", "WEBP": "WebP"}


def _as_numbers(size: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """Two sides as headers have them: of four bytes or two, in either order of bytes, less one, in words."""
    for less in (0, 1):
        for code in (">I", "<I", ">H", "<H"):
            yield struct.pack(code, size[0] - less), struct.pack(code, size[1] - less)
    yield b"%d" % size[0], b"%d" % size[1]


def with_header(name: str, size: tuple[int, int]) -> bytes:
    """A small picture whose header says that it has another size.

    Args:
        name: of a format that Pillow writes by itself.
        size: pixels, both sides alike.

    Raises:
        ValueError: there is no place at which a walk finds it.
    """
    data = _file(name)
    for old, new in zip(_as_numbers(SIZE), _as_numbers(size), strict=True):
        for one, other in (old, old[::-1]):
            # As far apart as in two entries of a TIFF, and perhaps within zeros that are another number's.
            for found in re.finditer(b"(?s)(?=%b(.{0,8}?)%b)" % (re.escape(one), re.escape(other)), data):
                rest = data[found.start() + len(one) + len(found[1]) + len(other) :]
                made = data[: found.start()] + new[0] + found[1] + new[1] + rest
                walked = FORMATS[name].walk(made, 1000)
                if (walked.width, walked.height) == size:
                    return made
    raise ValueError(f"{name}: no place found of its size, {SIZE}; say here how its header is written")


ANY_FILES: dict[str, Callable[[], bytes]] = {
    f"{SHOWN.get(name, name)}, header of 16,000 x 16,000": partial(with_header, name, (16_000, 16_000))
    for name, format in FORMATS.items()
    if format.plugin is None
}


# ---------------------------------------------------------------------------------------------------
# JPEG


def _jpeg(inserted: bytes, **options: object) -> bytes:
    """A JPEG with something between its start marker and its first segment."""
    data = _file("JPEG", **options)  # type: ignore[arg-type]
    return data[:2] + inserted + data[2:]


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def _photoshop(resources: int) -> bytes:
    return _segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\0" * resources)


def _jpeg_scans(size: int, scans: int) -> bytes:
    data = _file("JPEG", (size, size), "L", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def _frames() -> bytes:
    data = _file("JPEG")
    frame = data.index(b"\xff\xc0")
    return data[:frame] + data[frame : frame + 19] * 500_000 + data[frame:]


def _lying_frame(width: int, height: int, **options: object) -> bytes:
    data = bytearray(_file("JPEG", **options))  # type: ignore[arg-type]
    frame = data.index(b"\xff\xc2" if options else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


EXIF = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"
JPEG_FILES: dict[str, Callable[[], bytes]] = {
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
    "JPEG, Exif of 5,000 tags": lambda: _jpeg(_segment(0xE1, b"Exif\0\0" + _tags(5_000))),
}


# ---------------------------------------------------------------------------------------------------
# PNG


def _chunk(kind: bytes, payload: bytes = b"") -> bytes:
    checksum = zlib.crc32(kind + payload)
    return struct.pack(">I4s", len(payload), kind) + payload + struct.pack(">I", checksum)


def _png(before: bytes = b"", within: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG with something before its pixels, between two halves of them, and after them."""
    rows = zlib.compress((b"\0" + b"\x80" * SIZE[0]) * SIZE[1])
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, 8, 0, 0, 0, 0))
    first, second = _chunk(b"IDAT", rows[:10]), _chunk(b"IDAT", rows[10:])
    return b"\x89PNG\r\n\x1a\n" + header + before + first + within + second + after + _chunk(b"IEND")


def _tags(count: int) -> bytes:
    """The bytes of an Exif directory, each tag with a value that lies outside of it."""
    entries = b"".join(struct.pack("<HHII", tag, 5, 1, 8) for tag in range(1, count + 1))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + bytes(4)


def _text(kind: bytes, count: int, size: int) -> bytes:
    middle = b"\0\0" if kind == b"zTXt" else b"\0\1\0\0\0"
    packed = zlib.compress(b"a" * size, 9)
    return b"".join(_chunk(kind, b"k%d" % number + middle + packed) for number in range(count))


FRAME = struct.pack(">IIIIIHHBB", 0, *SIZE, 0, 0, 1, 1, 0, 0)
PNG_FILES: dict[str, Callable[[], bytes]] = {
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
    "PNG, Exif of 65,535 tags": lambda: _png(_chunk(b"eXIf", _tags(65_535))),
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


# ---------------------------------------------------------------------------------------------------
# WebP, GIF, BMP


def _riff(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _webp(before: bytes = b"", after: bytes = b"", canvas: tuple[int, int] = SIZE, flags: int = 0) -> bytes:
    plain = _file("WEBP")[12:]
    sides = b"".join(struct.pack("<I", side - 1)[:3] for side in canvas)
    extended = b"VP8X" + struct.pack("<II", 10, flags) + sides
    return _riff(extended + before + plain + after)


def _webp_frames(count: int) -> bytes:
    plain = _file("WEBP")[12:]
    sides = b"".join(struct.pack("<I", side - 1)[:3] for side in SIZE)
    frame = b"ANMF" + struct.pack("<I", 16 + len(plain)) + bytes(6) + sides + b"\x0a\0\0\0" + plain
    extended = b"VP8X" + struct.pack("<II", 10, 2) + sides
    return _riff(extended + b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame * count)


def _gif(blocks: bytes) -> bytes:
    data = _file("GIF", mode="P")
    start = 13 + (3 << (data[10] & 7) + 1)
    return data[:start] + blocks + data[start:]


def _gif_frame() -> bytes:
    data = bytearray(_gif(b""))
    place = data.index(b"\x2c", 13 + (3 << (data[10] & 7) + 1)) + 5
    data[place : place + 4] = b"\xff" * 4
    return bytes(data)


def _bmp(width: int, height: int, compression: int, packed: bytes) -> bytes:
    bits, palette = (8, bytes(1024)) if compression == 1 else (4, bytes(64))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(packed), 0, 0, 0, 0)
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(packed), 0, 0, offset) + header + palette + packed


OTHER_FILES: dict[str, Callable[[], bytes]] = {
    "WebP, empty chunks": lambda: _webp(after=b"abcd\0\0\0\0" * 2_000_000),
    "WebP, empty chunks before the pixels": lambda: _webp(before=b"abcd\0\0\0\0" * 2_000_000),
    "WebP, frames": lambda: _webp_frames(150_000),
    "WebP, canvas of 16,384 x 16,384": lambda: _webp(canvas=(16_384, 16_384)),
    "WebP, lossless, 12 million pixels": lambda: _file("WEBP", (3_500, 3_500), lossless=True, method=0),
    "GIF, extensions": lambda: _gif(b"\x21\xff\0" * 6_000_000),
    "GIF, graphic controls": lambda: _gif(b"\x21\xf9\x04\0\0\0\0\0" * 2_000_000),
    "GIF, a comment of many pieces": lambda: _gif(b"\x21\xfe" + b"\1a" * (BYTES // 2) + b"\0"),
    "GIF, an application's many pieces": lambda: _gif(b"\x21\xff" + b"\1a" * (BYTES // 2) + b"\0"),
    "GIF, bytes that are no block": lambda: _gif(b"\x01" * BYTES),
    "GIF, frame of 65,535 x 65,535": _gif_frame,
    "BMP, runs of one pixel": lambda: _bmp(5_000, 5_000, 1, b"\1\1" * (BYTES // 2)),
    "BMP, lines that end at once": lambda: _bmp(5_000, 5_000, 1, b"\0\0" * 5_000),
    "BMP, runs beyond a line": lambda: _bmp(100, 100, 1, b"\xff\1" * (BYTES // 2)),
    "BMP, runs of half bytes": lambda: _bmp(5_000, 5_000, 2, b"\xff\x12" * 100_000),
    "BMP, 1.4 million pixels in runs": lambda: _bmp(
        1_200, 1_200, 2, (b"\xff\x12" * 4 + b"\xb4\x12\0\0") * 1_200
    ),
}


# ---------------------------------------------------------------------------------------------------
# TIFF


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


TIFF_FILES: dict[str, Callable[[], bytes]] = {
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


# ---------------------------------------------------------------------------------------------------
# AVIF, HEIC


def _box(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I4s", len(payload) + 8, kind) + payload


def _avif_meta(inserted: bytes, brand: bytes = b"avif") -> bytes:
    """A file whose `meta` box holds what is inserted and nothing else."""
    kind = _box(b"hdlr", bytes(8) + b"pict" + bytes(13))
    return _box(b"ftyp", brand + bytes(4) + brand + b"mif1") + _box(b"meta", bytes(4) + kind + inserted)


def _lying_avif() -> bytes:
    """A picture of 8 million pixels whose boxes say 8 x 8."""
    data = _file("AVIF", (4_000, 2_000), speed=10)
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


ISO_FILES: dict[str, Callable[[], bytes]] = {
    "AVIF, empty boxes": lambda: _file("AVIF") + _box(b"free", b"") * 2_000_000,
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


# ---------------------------------------------------------------------------------------------------
# Colour profiles


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


PROFILE_FILES: dict[str, Callable[[], bytes]] = {
    "profile with a program of 100,000 steps": lambda: _file(
        "PNG", icc_profile=_profile(b"D2B0", _elements(100_000))
    ),
    "profile of 10 MB": lambda: _file("TIFF", icc_profile=_profile(b"A2B0", b"mft2" + bytes(40), 10_000_000)),
    "profile of a damaged table": lambda: _file(
        "PNG", icc_profile=_profile(b"A2B0", b"mft2" + b"\xff" * 100)
    ),
    "profile of noise": lambda: _file("JPEG", icc_profile=bytes(range(256)) * 200),
}


# Name -> what makes the file.
COSTLY: dict[str, Callable[[], bytes]] = {
    **ANY_FILES,
    **JPEG_FILES,
    **PNG_FILES,
    **OTHER_FILES,
    **TIFF_FILES,
    **ISO_FILES,
    **PROFILE_FILES,
}
