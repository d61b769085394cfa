"""Pictures for the tests of the core, and what the original processor makes of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from transformers import CLIPImageProcessorPil

from clipserve.colors import Color
from clipserve.errors import RequestError
from clipserve.images import ImageLimits, PixelArray, decode_image, preprocess
from clipserve.preprocessing import ImagePreprocessing

# Files that ship inside scikit-image's wheel, so that nothing is downloaded.
PHOTOGRAPHS = Path(skimage.data.__file__).parent
RGB = ["astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "hubble_deep_field.jpg", "color.png"]
GREY = ["camera.png", "page.png", "coins.png"]
ALPHA = ["horse.png", "logo.png"]

LIMITS = ImageLimits()
ORIENTATION = 0x0112


def clip_preprocessing(
    edge: int = 224, crop: int | None = None, crop_width: int | None = None
) -> ImagePreprocessing:
    height = edge if crop is None else crop
    width = height if crop_width is None else crop_width
    return ImagePreprocessing(edge, height, width, "bicubic", (0.0,) * 3, (1.0,) * 3)


def original(image: Image.Image, preprocessing: ImagePreprocessing) -> PixelArray:
    """What transformers' own processor makes of a picture, before rescaling and mean/std."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": preprocessing.shortest_edge},
        crop_size={"height": preprocessing.crop_height, "width": preprocessing.crop_width},
        do_rescale=False,
        do_normalize=False,
    )
    pixels: PixelArray = processor(image, return_tensors="np")["pixel_values"][0]
    return pixels


def ours(
    data: bytes, preprocessing: ImagePreprocessing, limits: ImageLimits = LIMITS, color: Color = "srgb"
) -> PixelArray:
    return preprocess(decode_image(data, limits, color=color), preprocessing, limits)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photograph(name: str) -> Image.Image:
    with Image.open(PHOTOGRAPHS / name) as image:
        image.load()
        return image


def assert_as_original(data: bytes, preprocessing: ImagePreprocessing, limits: ImageLimits = LIMITS) -> None:
    with Image.open(io.BytesIO(data)) as image:
        expected = original(image, preprocessing)
    # The original does not look at profiles.
    found = ours(data, preprocessing, limits, color="ignore")
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


def refused(data: bytes, limits: ImageLimits = LIMITS, **options: int) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode_image(data, limits, **options)
    return caught.value


SMALL = photograph("coffee.png").resize((120, 90))


def with_alpha(mode: str) -> Image.Image:
    """A photograph that fades out from left to right."""
    picture = photograph("coffee.png").resize((120, 90))
    fade = Image.fromarray(np.tile(np.linspace(0, 255, 120).astype(np.uint8), (90, 1)))
    picture = picture.convert("L" if mode == "LA" else "RGB")
    picture.putalpha(fade)
    return picture
