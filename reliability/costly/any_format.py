"""Of any format: a small picture whose header says that it is a large one."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from functools import partial

from clipserve.image_formats import FORMATS
from reliability.costly.plain import SIZE, plain_file

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
    data = plain_file(name)
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


FILES: dict[str, Callable[[], bytes]] = {
    f"{SHOWN.get(name, name)}, header of 16,000 x 16,000": partial(with_header, name, (16_000, 16_000))
    for name, format in FORMATS.items()
    if format.plugin is None
}
