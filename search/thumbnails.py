"""Small pictures for galleries and contact sheets."""

from __future__ import annotations

import io

from PIL import Image, ImageOps

from clipserve.images import ImageLimits

EDGE = 224  # pixels of the longer side; 8 to 10 kB each


def make_thumbnail(data: bytes) -> bytes:
    """A JPEG of at most `EDGE` x `EDGE` pixels, upright, of a picture that the server has accepted."""
    with Image.open(io.BytesIO(data), formats=ImageLimits().formats) as image:
        # Decodes a JPEG at a fraction of its size: many times faster than decoding it whole.
        image.draft("RGB", (2 * EDGE, 2 * EDGE))
        small = _over_white(ImageOps.exif_transpose(image))
    small.thumbnail((EDGE, EDGE))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def thumbnail_size(thumbnail: bytes) -> tuple[int, int]:
    """Width and height in pixels of what `make_thumbnail` made; its pixels are not decoded."""
    with Image.open(io.BytesIO(thumbnail), formats=("JPEG",)) as image:
        return image.size


def _over_white(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")
