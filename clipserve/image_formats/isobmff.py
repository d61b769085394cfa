"""AVIF and HEIC, whose container is the ISO base media file format (ISO/IEC 14496-12)."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from PIL import AvifImagePlugin

from clipserve.image_formats.base import Container, ImageFormat, Plugin

# One thread decodes a picture, as with every other format: workers are as many as there are cores.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

ISO_CONTAINERS = frozenset(
    {b"meta", b"iprp", b"ipco", b"iinf", b"iref", b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"}
)
# Bytes of a container's payload before its first box; `iinf` has two more from version 1 on.
ISO_HEADS = {b"meta": 4, b"iref": 4, b"iinf": 6, b"stsd": 8}
ISO_DEPTH = 8
AV1_SEQUENCE, AV1_FRAME_HEADER, AV1_FRAME = 1, 3, 6


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


def _register_heif() -> None:
    import pillow_heif  # an extra, and a second to import

    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


FORMATS = (
    ImageFormat(
        "AVIF",
        (".avif",),
        re.compile(rb"(?s)....ftyp(?:avi[fs]|(?:mif1|msf1)(?=.{0,64}avi[fs]))"),
        walk_iso,
        "image/avif",
        12,
    ),
    ImageFormat(
        "HEIF",
        (".heic", ".heif", ".hif"),
        re.compile(rb"(?s)....ftyp(?:he[iv][cmsx]|(?:mif1|msf1)(?=.{0,64}he[iv][cmsx]))"),
        walk_iso,
        decoder_bytes=12,
        plugin=Plugin("pillow_heif", "heic", _register_heif),
    ),
)
