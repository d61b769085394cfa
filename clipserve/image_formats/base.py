"""What a picture's file says of itself, read before a decoder sees it.

A decoder's time and memory depend on more than bytes and pixels: it reads a file's structures (segments,
chunks, blocks, boxes, tags) one by one, some of them in Python, some with a copy of all that came before.
Each walker here goes over a container once, from the front, jumps from structure to structure, and stops as
soon as there are more than allowed. It does not judge: where a file is damaged it stops, and the decoder
says what is wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

# TIFF: tag numbers, and bytes of each value type.
TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS, TIFF_COMPRESSION, TIFF_SAMPLES = 256, 257, 258, 259, 277
TIFF_STRIPS, TIFF_ROWS, TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT, TIFF_TILES = 273, 278, 322, 323, 324
TIFF_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
TIFF_BYTES = frozenset({1, 2, 6, 7})  # types that Pillow reads as a whole
# None, CCITT (three), LZW, JPEG, Deflate (two numbers), PackBits. Of the others, LZMA takes as much memory
# as the file asks for, and the rest are hardly ever met.
TIFF_ADMITTED = frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946})

ISO_CONTAINERS = frozenset(
    {b"meta", b"iprp", b"ipco", b"iinf", b"iref", b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"}
)
# Bytes of a container's payload before its first box; `iinf` has two more from version 1 on.
ISO_HEADS = {b"meta": 4, b"iref": 4, b"iinf": 6, b"stsd": 8}
ISO_DEPTH = 8
AV1_SEQUENCE, AV1_FRAME_HEADER, AV1_FRAME = 1, 3, 6


@dataclass
class Container:
    """What a walk found.

    Attributes:
        structures: how many; more than were allowed as soon as the walk stopped for it.
        called: what they are, in the plural.
        width, height: pixels, the most that the decoder may be made to decode; 0 where the file does not say.
        scans: passes over the pixels, of a JPEG.
        decoder_bytes: what the decoder holds beside the picture it makes, known from the header.
        ended: the end marker is there; False only where nothing but that marker can be missing.
        refused: why the file is of no admitted kind; empty otherwise.
    """

    structures: int = 0
    called: str = "structures"
    width: int = 0
    height: int = 0
    scans: int = 0
    decoder_bytes: int = 0
    ended: bool = True
    refused: str = ""

    def widen(self, width: int, height: int) -> None:
        """Notes a size, the largest counts."""
        if width * height > self.width * self.height:
            self.width, self.height = width, height


Walker = Callable[[bytes, int], Container]


def _chunks(
    data: bytes,
    position: int,
    found: Container,
    most: int,
    order: Literal["big", "little"],
    *,
    kind_at: int,
    tail: int,
    even: bool,
) -> Iterator[tuple[bytes, int, int]]:
    """Chunks of four bytes of kind, four of length, and a content: kind, place and length of each content.

    Args:
        data: the file.
        position: of the first chunk.
        found: where they are counted.
        most: that many are gone over.
        order: of a length's bytes.
        kind_at: 0 or 4, where the kind stands; the length stands at the other.
        tail: bytes behind a content, of a checksum.
        even: whether a content is filled up to an even length.
    """
    while found.structures <= most and position + 8 <= len(data):
        found.structures += 1
        length_at = position + 4 - kind_at
        length = int.from_bytes(data[length_at : length_at + 4], order)
        yield data[position + kind_at : position + kind_at + 4], position + 8, length
        position += 8 + length + tail + (length % 2 if even else 0)


def walk_png(data: bytes, most: int) -> Container:
    """Walks over the chunks of a PNG."""
    found = Container(called="chunks")
    for kind, start, length in _chunks(data, 8, found, most, "big", kind_at=4, tail=4, even=False):
        if kind == b"IHDR" and length >= 8 and start + 8 <= len(data):
            found.widen(*struct.unpack_from(">II", data, start))
        elif kind == b"IEND":
            break
    return found


def walk_webp(data: bytes, most: int) -> Container:
    """Walks over the chunks of a WebP, one for each frame of an animation."""
    found = Container(called="chunks")
    for kind, start, _ in _chunks(data, 12, found, most, "little", kind_at=0, tail=0, even=True):
        head = data[start : start + 10]
        if kind == b"VP8X" and len(head) == 10:
            size = int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
            found.widen(*size)
        elif kind == b"VP8 " and len(head) == 10:
            found.widen(*(side & 0x3FFF for side in struct.unpack_from("<HH", head, 6)))
        elif kind == b"VP8L" and len(head) == 10:
            bits = int.from_bytes(head[1:5], "little")
            found.widen((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    return found


def walk_gif(data: bytes, most: int) -> Container:
    """Walks over the blocks of a GIF that stand before the pixels of its first frame."""
    found = Container(called="blocks before the first frame")
    if len(data) < 13:
        return found
    found.widen(*struct.unpack_from("<HH", data, 6))
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    while found.structures <= most and position < len(data):
        found.structures += 1
        kind = data[position]
        if kind == 0x2C:
            if position + 9 <= len(data):
                left, top, width, height = struct.unpack_from("<HHHH", data, position + 1)
                found.width, found.height = max(found.width, left + width), max(found.height, top + height)
            break
        position += 1
        if kind == 0x3B:
            break
        if kind == 0x21:
            position += 1
            while found.structures <= most and position < len(data) and data[position]:
                found.structures += 1
                position += 1 + data[position]
            position += 1
    return found


def walk_bmp(data: bytes, most: int) -> Container:
    """Reads the header of a BMP. Run-length coding is decoded in Python, run by run and fill by fill."""
    found = Container(called="hundreds of runs or pixels in run-length coding")
    if len(data) < 26:
        return found
    if int.from_bytes(data[14:18], "little") == 12:
        found.widen(*struct.unpack_from("<HH", data, 18))
        return found
    width, height = struct.unpack_from("<ii", data, 18)
    found.widen(abs(width), abs(height))
    if len(data) >= 34 and data[30] in (1, 2):
        found.structures = max(found.width * found.height, len(data) // 2) // 100
    return found


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


def walk_iso(data: bytes, most: int) -> Container:
    """Walks over the boxes of an AVIF or HEIC; items and the places that they lie at count too."""
    found = Container(called="boxes and items")
    places: list[tuple[int, int]] = []
    for kind, start, end in _iso_boxes(data, found, most, 0, len(data), 0):
        if kind == b"ispe" and start + 12 <= end:
            found.widen(*struct.unpack_from(">II", data, start + 4))
        elif kind in (b"av01", b"hvc1", b"hev1") and start + 28 <= end:
            found.widen(*struct.unpack_from(">HH", data, start + 24))
        elif kind == b"iloc":
            places += _iso_places(data, found, most, start, end)
        elif kind == b"stco" and start + 12 <= end:
            places.append((int.from_bytes(data[start + 8 : start + 12], "big"), len(data)))
        elif kind in (b"dimg", b"auxl", b"thmb", b"cdsc") and start + 4 <= end:
            found.structures += int.from_bytes(data[start + 2 : start + 4], "big")
    for start, end in places:
        # The coded picture may be larger than its box says: the decoder decodes it, and then reduces it.
        found.widen(*_av1_size(data, start, min(end, len(data))))
    return found


def _iso_boxes(
    data: bytes, found: Container, most: int, start: int, end: int, depth: int
) -> Iterator[tuple[bytes, int, int]]:
    while start + 8 <= end and found.structures <= most:
        found.structures += 1
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= end:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        box_end = end if size == 0 else min(end, start + max(size, head))
        yield kind, start + head, box_end
        if kind in ISO_CONTAINERS and depth < ISO_DEPTH:
            inner = start + head + ISO_HEADS.get(kind, 0)
            if kind == b"iinf" and start + head < end and data[start + head]:
                inner += 2
            yield from _iso_boxes(data, found, most, inner, box_end, depth + 1)
        start = box_end


def _iso_places(data: bytes, found: Container, most: int, start: int, end: int) -> list[tuple[int, int]]:
    """Where items begin and end that lie in the file in one piece or more; the first piece counts."""
    places: list[tuple[int, int]] = []
    try:
        version, sizes, more_sizes = data[start], data[start + 4], data[start + 5]
        offset_size, length_size, base_size = sizes >> 4, sizes & 15, more_sizes >> 4
        index_size = more_sizes & 15 if version in (1, 2) else 0
        wide = 4 if version == 2 else 2
        position = start + 6 + wide
        for _ in range(int.from_bytes(data[start + 6 : position], "big")):
            found.structures += 1
            position += wide + (2 if version in (1, 2) else 0) + 2
            base = int.from_bytes(data[position : position + base_size], "big")
            position += base_size
            pieces = int.from_bytes(data[position : position + 2], "big")
            found.structures += max(0, pieces - 1)
            if found.structures > most or position + 2 > end:
                break
            offset_at = position + 2 + index_size
            length_at = offset_at + offset_size
            offset = base + int.from_bytes(data[offset_at:length_at], "big")
            length = int.from_bytes(data[length_at : length_at + length_size], "big")
            places.append((offset, offset + length if length and pieces == 1 else len(data)))
            position += 2 + pieces * (index_size + offset_size + length_size)
    except IndexError:
        pass
    return places


def _av1_size(data: bytes, start: int, end: int) -> tuple[int, int]:
    """The largest frame that the AV1 stream there may hold, pixels; (0, 0) where there is no such stream."""
    size = (0, 0)
    for _ in range(16):
        if start + 2 > end:
            break
        kind, extended, sized = data[start] >> 3 & 15, data[start] >> 2 & 1, data[start] >> 1 & 1
        if data[start] >> 7 or not sized or kind in (AV1_FRAME_HEADER, AV1_FRAME):
            break
        start += 1 + extended
        length = shift = 0
        while start < end:
            byte = data[start]
            length |= (byte & 127) << shift
            shift, start = shift + 7, start + 1
            if byte < 128 or shift > 56:
                break
        if kind == AV1_SEQUENCE:
            found = _av1_sequence(data[start : min(end, start + min(length, 512))])
            size = max(size, found, key=lambda side: side[0] * side[1])
        start += length
    return size


def _av1_sequence(header: bytes) -> tuple[int, int]:
    """The largest frame that a sequence header allows, pixels: AV1 specification, section 5.5.1."""
    bits = "".join(f"{byte:08b}" for byte in header) + "0" * 256
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place] or "0", 2)

    take(4)  # profile, still picture
    if take(1):  # reduced header
        take(5)
    else:
        decoder_model = delay_bits = 0
        if take(1):  # timing
            take(64)
            if take(1):  # equal picture interval: a number in Exp-Golomb coding
                zeros = 0
                while zeros < 32 and not take(1):
                    zeros += 1
                take(zeros)
            decoder_model = take(1)
            if decoder_model:
                delay_bits = take(5) + 1
                take(42)
        initial_delay = take(1)
        for _ in range(take(5) + 1):  # operating points
            take(12)
            if take(5) > 7:
                take(1)
            if decoder_model and take(1):
                take(2 * delay_bits + 1)
            if initial_delay and take(1):
                take(4)
    width_bits, height_bits = take(4) + 1, take(4) + 1
    return take(width_bits) + 1, take(height_bits) + 1
