"""JPEG, and what it alone has: scans one after the other, reduced sizes, a missing end marker."""

from __future__ import annotations

import io
import re
import struct
import zlib

from PIL import Image, ImageFile

from clipserve.errors import RequestError
from clipserve.image_formats.base import Container, ImageFormat

# Of an Exif segment, Pillow copies all Exif bytes before it: so many copied bytes count as one structure.
COPIED = 65_536

FILL = re.compile(rb"\xff*")
# In a scan, a byte of 255 is followed by a zero, or is part of a restart marker.
AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})  # markers without a length
COEFFICIENTS = 64  # of a block of 8 x 8 samples, 2 bytes each

END = b"\xff\xd9"

# What may be missing at the end of a JPEG, thrice: each begins with other bits than zeros, and than the
# others do.
FILLERS = tuple(bytes(range(first, 250, 3)) * 40 for first in (170, 85, 235))

STRIP = 512  # pixels, the height of what a checksum is taken of at once


def walk_jpeg(data: bytes, most: int) -> Container:
    """Walks over the segments and scans of a JPEG up to its end marker; a byte of padding counts as one."""
    found = Container(called="segments, bytes of padding between them or resources within")
    frame = _Frame()
    position, exif_bytes = 2, 0
    while found.structures <= most:
        marker_at = data.find(b"\xff", position)
        if marker_at < 0:
            break
        filled = FILL.match(data, marker_at)
        end = filled.end() if filled else marker_at + 1
        # What is no marker is skipped byte by byte.
        found.structures += (marker_at - position) + (end - marker_at)
        if end >= len(data):
            break
        marker = data[end]
        position = end + 1
        if marker == 0xD9 and found.scans:
            found.decoder_bytes = frame.coefficient_bytes()
            return found
        if marker in ALONE:
            continue
        if position + 2 > len(data):
            break
        length = max(2, int.from_bytes(data[position : position + 2], "big"))
        segment = data[position + 2 : position + length]
        position += length
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            found.structures += exif_bytes // COPIED
            exif_bytes += len(segment)
        elif marker == 0xED:
            found.structures += segment.count(b"8BIM")  # resources of Photoshop's
        elif marker == 0xDD and len(segment) >= 2:
            frame.restart_interval = int.from_bytes(segment[:2], "big")
        elif marker in FRAMES and len(segment) >= 6:
            frame.begin(segment, marker in PROGRESSIVE)
            found.widen(frame.width, frame.height)
        elif marker == 0xDA:
            found.scans += 1
            after = AFTER_SCAN.search(data, position)
            scan_end = after.start() if after else len(data)
            frame.scan(segment, data, position, scan_end, last=after is None)
            position = scan_end
    found.decoder_bytes = frame.coefficient_bytes()
    found.ended = not (found.scans and frame.whole())
    return found


class _Frame:
    """The frame of a JPEG, and which of its coefficients the scans so far have brought."""

    def __init__(self) -> None:
        self.width = self.height = self.restart_interval = 0
        self._components: dict[int, tuple[int, int]] = {}
        self._missing_bits: dict[int, list[int]] = {}
        self._in_passes = False
        self._all_restarts = True

    def begin(self, segment: bytes, progressive: bool) -> None:
        self.height, self.width, count = struct.unpack_from(">HHB", segment, 1)
        parts = [segment[start : start + 3] for start in range(6, 6 + 3 * count, 3)]
        self._components = {p[0]: (p[1] >> 4, p[1] & 15) for p in parts if len(p) == 3}
        self._missing_bits = {number: [1] * COEFFICIENTS for number in self._components}
        self._in_passes = progressive

    def scan(self, segment: bytes, data: bytes, start: int, end: int, *, last: bool) -> None:
        count = segment[0] if segment else 0
        if len(segment) < 4 + 2 * count:
            return
        numbers = [segment[1 + 2 * i] for i in range(count)]
        first, final, bits = segment[1 + 2 * count : 4 + 2 * count]
        for number in numbers:
            if number in self._missing_bits:
                until = min(final, COEFFICIENTS - 1) + 1
                self._missing_bits[number][first:until] = [bits & 15] * (until - first)
        self._in_passes = self._in_passes or count < len(self._components)
        if last and self.restart_interval:
            restarts = sum(1 for _ in RESTART.finditer(data, start, end))
            self._all_restarts = restarts >= -(-self._units(numbers) // self.restart_interval) - 1

    def whole(self) -> bool:
        """Whether every coefficient has been in a scan, and every restart interval of the last one begun."""
        return self._all_restarts and not any(map(any, self._missing_bits.values()))

    def coefficient_bytes(self) -> int:
        """What a decoder holds where scans bring a part of each block at a time, whatever size it makes."""
        if not self._in_passes:
            return 0
        return sum(2 * COEFFICIENTS * self._blocks(number) for number in self._components)

    def _blocks(self, number: int) -> int:
        across, down = self._components[number]
        widest, tallest = self._most_samples()
        return -(-self.width * across // (8 * widest)) * -(-self.height * down // (8 * tallest))

    def _units(self, numbers: list[int]) -> int:
        """What restart intervals count: blocks of one component, or groups of blocks of several."""
        if len(numbers) == 1 and numbers[0] in self._components:
            return self._blocks(numbers[0])
        widest, tallest = self._most_samples()
        return -(-self.width // (8 * widest)) * -(-self.height // (8 * tallest))

    def _most_samples(self) -> tuple[int, int]:
        sampling = self._components.values()
        return max((a for a, _ in sampling), default=1) or 1, max((d for _, d in sampling), default=1) or 1


def load_reduced(image: ImageFile.ImageFile, scale: int) -> None:
    """Decodes a picture whose sides are divided by `scale`: 1, or one of its format's `scales`."""
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    image.load()


def load_without_end(image: ImageFile.ImageFile, data: bytes, scale: int) -> None:
    """Decodes a JPEG whose end marker is missing, and refuses it if pixels are missing too.

    The decoder fills what is missing with zeros and tells nobody. So the picture is decoded with several
    ends; where pixels depend on the end, some belong there.

    Raises:
        RequestError: `invalid_image` (400), pixels are missing.
    """
    present = data[:-1] if data.endswith(b"\xff") else data
    checksums = set()
    for filler in FILLERS:
        with Image.open(io.BytesIO(present + filler + END), formats=("JPEG",)) as other:
            load_reduced(other, scale)
            checksums.add(_checksum(other))
    image.fp = io.BytesIO(present + END)
    load_reduced(image, scale)
    if checksums != {_checksum(image)}:
        raise RequestError("invalid_image", "the image cannot be decoded: its file is truncated")


def _checksum(image: Image.Image) -> int:
    checksum = 0
    # Strip by strip: as a whole it would be copied.
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        checksum = zlib.crc32(strip.tobytes(), checksum)
    return checksum


FORMATS = (
    ImageFormat(
        "JPEG",
        (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        re.compile(rb"\xff\xd8\xff"),
        walk_jpeg,
        "image/jpeg",
        scales=(8, 4, 2),
    ),
)
