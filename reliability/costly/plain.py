"""The small picture around which costly files are put together."""

from __future__ import annotations

import io

from PIL import Image

SIZE = (48, 36)  # pixels, of the picture around which things are put
BYTES = 19_000_000  # of the largest files made here


def plain_file(format: str, size: tuple[int, int] = SIZE, mode: str = "RGB", **options: object) -> bytes:
    """A grey picture.

    Args:
        format: Pillow's name.
        size: width and height in pixels.
        mode: Pillow's, `P` for one with a palette.
        options: of the format's encoder.
    """
    stream = io.BytesIO()
    Image.new(mode, size, "grey" if mode != "P" else 0).save(stream, format, **options)
    return stream.getvalue()
