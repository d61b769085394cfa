"""Twenty files as people have them, and what the original makes of each: one set for every door.

A door is whatever takes a file's bytes and gives its vector: TorchServe, Ray Serve, the index, the page, the
bulk job. `assert_same_vectors` is all that a door's test needs.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms, ImageDraw

from clipserve.encoder_spec import FloatArray
from clipserve.images import PixelArray, decode_image, preprocess
from clipserve.settings import Settings

if TYPE_CHECKING:
    # The search room has no PyTorch, and asks a server instead.
    from clipserve.encoder import ExportedImageEncoder

# The worker pads and batches otherwise than the reference does: float additions in another order.
SAME = 2e-6

SIZE = (200, 150)  # pixels
ORIENTATION = 0x0112
GARBAGE = b"Exif\0\0garbage"

# Columns of Display P3's matrix in ICC's white D50, from its primaries (SMPTE EG 432-1) by Bradford's
# adaptation.
P3_COLUMNS = {
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}


@functools.cache
def srgb() -> bytes:
    """The profile of sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@functools.cache
def display_p3() -> bytes:
    """The profile of an iPhone's photographs: sRGB's curve, wider primaries."""
    profile = bytearray(srgb())
    for number in range(int.from_bytes(profile[128:132], "big")):
        tag, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        if tag in P3_COLUMNS:
            struct.pack_into(">3i", profile, offset + 8, *(round(65536 * value) for value in P3_COLUMNS[tag]))
    return bytes(profile)


def _drawn(size: tuple[int, int] = SIZE, mode: str = "RGB") -> Image.Image:
    """A scene with smooth and sharp parts, other in every corner."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    values = np.stack([255 * x / width, 255 * y / height, 127 + 100 * np.sin(9 * (x + y) / width)], -1)
    image = Image.fromarray(values.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 8, height // 8, width // 2, height // 2), fill=(220, 40, 30))
    draw.rectangle((width // 2, height // 2, width - width // 9, height - 9), fill=(20, 120, 210))
    if mode.endswith("A"):
        fade = Image.linear_gradient("L").resize(size)
        image = image.convert(mode.removesuffix("A"))
        image.putalpha(fade)
        return image
    return image.convert(mode)


def _file(format: str, mode: str = "RGB", size: tuple[int, int] = SIZE, **options: object) -> bytes:
    buffer = io.BytesIO()
    _drawn(size, mode).save(buffer, format, **options)
    return buffer.getvalue()


def _turned() -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return _file("JPEG", exif=exif, quality=90)


def _grey_16_bit() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(_drawn(mode="L"), np.uint16) * 2).save(buffer, "TIFF")
    return buffer.getvalue()


def _animation() -> bytes:
    return _file("GIF", "P", save_all=True, append_images=[Image.new("RGB", SIZE, "black")])


FILES: dict[str, Callable[[], bytes]] = {
    "plain.png": lambda: _file("PNG"),
    "logo.png": lambda: _file("PNG", "RGBA"),
    "grey-logo.png": lambda: _file("PNG", "LA"),
    "palette.png": lambda: _file("PNG", "P", transparency=bytes(range(256))),
    "garbage-exif.png": lambda: _file("PNG", exif=GARBAGE),
    "photo.jpg": lambda: _file("JPEG", quality=90),
    "grey.jpg": lambda: _file("JPEG", "L"),
    "print.jpg": lambda: _file("JPEG", "CMYK"),
    "progressive.jpg": lambda: _file("JPEG", progressive=True),
    "turned.jpg": _turned,
    "iphone.jpg": lambda: _file("JPEG", quality=95, icc_profile=display_p3()),
    "no-end.jpg": lambda: _file("JPEG", quality=90)[:-2],
    "large.jpg": lambda: _file("JPEG", size=(3000, 2700), quality=90),
    "camera.mpo": lambda: _file("MPO", save_all=True, append_images=[_drawn().rotate(180)]),
    "garbage-exif.webp": lambda: _file("WEBP", "RGBA", exif=GARBAGE, lossless=True),
    "animation.gif": _animation,
    "old.bmp": lambda: _file("BMP"),
    "print.tif": lambda: _file("TIFF", "CMYK", compression="tiff_lzw"),
    "scan.tiff": _grey_16_bit,
    "modern.avif": lambda: _file("AVIF", quality=80),
}


@functools.cache
def file(name: str) -> bytes:
    """The bytes of a file of `FILES`."""
    return FILES[name]()


def served_pixels(name: str, encoder: ExportedImageEncoder) -> PixelArray:
    """What the core makes of a file with the settings as they come; uint8 `[3, H, W]`."""
    settings, preprocessing = Settings(), encoder.preprocessing
    image = decode_image(
        file(name),
        settings.images,
        shortest_edge=preprocessing.shortest_edge,
        draft_factor=settings.draft_factor,
        color=settings.color,
    )
    return preprocess(image, preprocessing, settings.images)


def served_vector(name: str, encoder: ExportedImageEncoder) -> FloatArray:
    """The vector that every door has to give for a file; float32 `[D]`."""
    vector: FloatArray = encoder.embed([served_pixels(name, encoder)])[0]
    return vector


def assert_same_vectors(
    door: Callable[[str, bytes], FloatArray], expected: Callable[[str], FloatArray]
) -> None:
    """Sends each of the files through a door.

    Args:
        door: name and bytes of a file to its vector, float32 `[D]`.
        expected: name of a file to the vector that it should have, see `served_vector`.
    """
    for name in FILES:
        found = door(name, file(name))
        np.testing.assert_allclose(found, expected(name), rtol=0, atol=SAME, err_msg=name)
