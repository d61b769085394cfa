"""What a picture format says of itself, and what a walk over its container finds.

A decoder's time and memory depend on more than bytes and pixels: it reads a file's structures (segments,
chunks, blocks, boxes, tags) one by one, some of them in Python, some with a copy of all that came before.
Each format's walker goes over its container once, from the front, jumps from structure to structure, and
stops as soon as there are more than allowed. It does not judge: where a file is damaged it stops, and the
decoder says what is wrong.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

# Bytes of a pixel in Pillow's memory; 4 in all other modes, RGB among them.
PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
RGB_BYTES = 4


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


@dataclass(frozen=True)
class Plugin:
    """A decoder that is no part of Pillow.

    Attributes:
        module: that has it.
        extra: of this package, which brings it, as does `make EXTRA`.
        register: makes it known to Pillow; raises ImportError where it is missing.
    """

    module: str
    extra: str
    register: Callable[[], None]

    @property
    def is_missing(self) -> bool:
        """Whether it would have to be installed first."""
        return importlib.util.find_spec(self.module) is None


@dataclass(frozen=True)
class ImageFormat:
    """A format that is read.

    Attributes:
        name: Pillow's.
        endings: of files, in lower case.
        signature: what its files begin with.
        walk: reads the container before the decoder does.
        shown_as: the media type under which browsers show it; empty where they do not.
        decoder_bytes: of a pixel, that the decoder holds beside the picture that it makes, at most
            (measured); more than 0 where it takes them before it says how large the picture is, so that
            pictures are decoded one at a time. What a file's header tells of it is the walker's to say.
        scales: by which the decoder can reduce a picture, in a fraction of the time and memory, the largest
            first.
        plugin: the decoder, where Pillow itself has none.
    """

    name: str
    endings: tuple[str, ...]
    signature: re.Pattern[bytes]
    walk: Walker
    shown_as: str = ""
    decoder_bytes: int = 0
    scales: tuple[int, ...] = ()
    plugin: Plugin | None = None

    def decoding_bytes(self, size: tuple[int, int], mode: str, decoder_bytes: int = 0) -> int:
        """What decoding a picture takes at its peak.

        Args:
            size: width and height that the decoder makes, pixels.
            mode: Pillow's, of what it makes.
            decoder_bytes: in all, that the decoder holds for this very file.

        Returns:
            The most of: picture and decoder; the picture twice, when it is turned; the picture and its RGB
            form.
        """
        pixel = PIXEL_BYTES.get(mode, RGB_BYTES)
        pixels = size[0] * size[1]
        return max(
            pixels * (pixel + self.decoder_bytes) + decoder_bytes,
            pixels * 2 * pixel,
            pixels * (pixel + RGB_BYTES),
        )


def chunks(
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
