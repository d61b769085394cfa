"""Small pictures for galleries and contact sheets."""

from __future__ import annotations

import io

from PIL import Image

from clipserve.images import ImageLimits, decode_image

EDGE = 224  # pixels of the longer side; 8 to 10 kB each
# Of panoramas, which a gallery shows as high as other pictures: the shorter side, and the longer at most.
SHORTER, LONGEST = 112, 448


def make_thumbnail(data: bytes) -> bytes:
    """A JPEG as of `shrink`, of the picture that the server sees in these bytes.

    Raises:
        RequestError: it is none.
    """
    return shrink(decode_image(data, ImageLimits(), shortest_edge=EDGE, draft_factor=2))


def shrink(image: Image.Image) -> bytes:
    """A JPEG of an RGB picture, which is itself reduced: to `EDGE`, panoramas to `LONGEST` at most."""
    shorter, longer = sorted(image.size)
    edge = min(max(EDGE, SHORTER * longer // shorter), LONGEST)
    image.thumbnail((edge, edge))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def thumbnail_size(thumbnail: bytes) -> tuple[int, int]:
    """Width and height in pixels of what `make_thumbnail` made; its pixels are not decoded."""
    with Image.open(io.BytesIO(thumbnail), formats=("JPEG",)) as image:
        return image.size
