"""Pixels: the same as the original processor makes, upright, of the first frame."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from clipserve.images import ImageLimits, decode_image
from clipserve.preprocessing import ImagePreprocessing
from tests.clipserve.pictures import (
    ALPHA,
    GREY,
    LIMITS,
    ORIENTATION,
    PHOTOGRAPHS,
    RGB,
    SMALL,
    assert_as_original,
    clip_preprocessing,
    encoded,
    original,
    ours,
    photograph,
    with_alpha,
)


@pytest.mark.parametrize("name", RGB + GREY + ALPHA + ["no_time_for_that_tiny.gif"])
@pytest.mark.parametrize("edge", [224, 48])
def test_photographs_pixel_for_pixel(name: str, edge: int) -> None:
    assert_as_original((PHOTOGRAPHS / name).read_bytes(), clip_preprocessing(edge))


@pytest.mark.parametrize("edge", [16, 31, 100, 225, 336])
def test_shortest_edges(edge: int) -> None:
    assert_as_original((PHOTOGRAPHS / "chelsea.png").read_bytes(), clip_preprocessing(edge))


@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        (2, 3),
        (33, 97),
        (97, 33),
        (223, 225),
        (224, 224),
        (225, 224),
        (224, 301),
        (451, 300),
        (300, 451),
        (37, 224),
        (999, 224),
        (13, 401),
    ],
    ids=str,
)
def test_odd_sizes_portrait_landscape_and_smaller_than_the_crop(size: tuple[int, int]) -> None:
    picture = photograph("astronaut.png").resize(size)
    assert_as_original(encoded(picture, "PNG"), clip_preprocessing())


@pytest.mark.parametrize(
    ("edge", "crop", "crop_width"),
    [(64, 48, 48), (65, 48, 48), (48, 65, 65), (48, 64, 64), (50, 30, 70), (51, 71, 30), (50, 71, 33)],
)
@pytest.mark.parametrize("size", [(80, 80), (57, 91), (91, 57)], ids=str)
def test_crop_that_is_not_the_resized_square(
    size: tuple[int, int], edge: int, crop: int, crop_width: int
) -> None:
    """Crops smaller than the picture are cut out of it; larger ones are filled with black."""
    picture = photograph("coffee.png").resize(size)
    assert_as_original(encoded(picture, "PNG"), clip_preprocessing(edge, crop, crop_width))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 180),
    height=st.integers(1, 180),
    edge=st.integers(1, 70),
    crop=st.integers(1, 70),
)
def test_any_size(width: int, height: int, edge: int, crop: int) -> None:
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    limits = ImageLimits(max_aspect_ratio=180)
    assert_as_original(encoded(Image.fromarray(noise), "PNG"), clip_preprocessing(edge, crop), limits)


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
def test_resampling_is_the_one_of_the_spec(resample: str) -> None:
    picture = photograph("chelsea.png")
    spec = ImagePreprocessing(50, 50, 50, resample, (0.0,) * 3, (1.0,) * 3)
    expected = picture.resize((75, 50), Image.Resampling[resample.upper()]).crop((12, 0, 62, 50))
    np.testing.assert_array_equal(
        ours(encoded(picture, "PNG"), spec), np.asarray(expected).transpose(2, 0, 1)
    )


def palette_with_transparency(format: str) -> bytes:
    picture = photograph("coffee.png").resize((120, 90)).convert("P", palette=Image.Palette.ADAPTIVE)
    most_used = int(np.bincount(np.asarray(picture).ravel()).argmax())
    return encoded(picture, format, transparency=most_used)


def grey_16_bit() -> bytes:
    # Values below and above 255: Pillow clips, and so must we.
    values = np.asarray(photograph("camera.png").resize((120, 90)), dtype=np.uint16) * 2
    return encoded(Image.fromarray(values), "PNG")


MODES: dict[str, Callable[[], bytes]] = {
    "RGB": lambda: encoded(SMALL, "PNG"),
    "RGB, one colour transparent": lambda: encoded(SMALL, "PNG", transparency=SMALL.getpixel((60, 45))),
    "L": lambda: encoded(SMALL.convert("L"), "PNG"),
    "L, one grey transparent": lambda: encoded(
        SMALL.convert("L"), "PNG", transparency=SMALL.convert("L").getpixel((60, 45))
    ),
    "P": lambda: encoded(SMALL.convert("P"), "PNG"),
    "P, one colour transparent": lambda: palette_with_transparency("PNG"),
    "P, an alpha for each colour": lambda: encoded(SMALL.convert("P"), "PNG", transparency=bytes(range(256))),
    "RGBA": lambda: encoded(with_alpha("RGBA"), "PNG"),
    "LA": lambda: encoded(with_alpha("LA"), "PNG"),
    "1": lambda: encoded(SMALL.convert("1"), "PNG"),
    "16-bit grey": grey_16_bit,
    "CMYK JPEG": lambda: encoded(SMALL.convert("CMYK"), "JPEG"),
    "grey JPEG": lambda: encoded(SMALL.convert("L"), "JPEG"),
    "progressive JPEG": lambda: encoded(SMALL, "JPEG", progressive=True),
    "JPEG with 4:2:0": lambda: encoded(SMALL, "JPEG", subsampling=2),
    "interlaced GIF": lambda: encoded(SMALL.convert("P"), "GIF", interlace=1),
    "GIF, one colour transparent": lambda: palette_with_transparency("GIF"),
    "BMP": lambda: encoded(SMALL, "BMP"),
    "WEBP": lambda: encoded(SMALL, "WEBP"),
    "WEBP with alpha": lambda: encoded(with_alpha("RGBA"), "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", MODES)
def test_modes_and_formats_pixel_for_pixel(kind: str) -> None:
    assert_as_original(MODES[kind](), clip_preprocessing(48))


@pytest.mark.parametrize(
    "kind", [k for k in MODES if "transparent" in k or "alpha" in k.lower() or k in ("RGBA", "LA")]
)
def test_transparency_is_laid_over_white(kind: str) -> None:
    data = MODES[kind]()
    with Image.open(io.BytesIO(data)) as image:
        rgba = np.asarray(image.convert("RGBA"), dtype=np.float64)
    alpha = rgba[..., 3:] / 255
    assert alpha.min() == 0
    found = np.asarray(decode_image(data, LIMITS), dtype=np.float64)
    np.testing.assert_allclose(found, rgba[..., :3] * alpha + 255 * (1 - alpha), atol=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_of_large_pictures(mode: str) -> None:
    """Laid over white piece by piece, with no seam between the pieces."""
    picture = photograph("retina.jpg").resize((1411, 1100))
    if mode == "P":
        data = encoded(picture.convert("P"), "PNG", transparency=bytes(range(256)), compress_level=1)
    else:
        picture = picture.convert(mode.removesuffix("A") if mode == "LA" else "RGB")
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        data = encoded(picture, "PNG", compress_level=1)
    with Image.open(io.BytesIO(data)) as image:
        expected = original(image, clip_preprocessing(1100, 1100, 1411))
    np.testing.assert_array_equal(ours(data, clip_preprocessing(1100, 1100, 1411)), expected)


def test_16_bit_grey_is_clipped_as_the_module_says() -> None:
    values = np.array([[0, 200, 255], [256, 300, 65535]], dtype=np.uint16)
    found = decode_image(encoded(Image.fromarray(values), "PNG"), LIMITS)
    assert np.asarray(found)[..., 0].tolist() == [[0, 200, 255], [255, 255, 255]]


# ---- orientation, animation


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    # A landscape with four different quarters, as a viewer should show it.
    upright = Image.new("RGB", (64, 32), "white")
    for box, colour in (((0, 0, 32, 16), "red"), ((32, 0, 64, 16), "lime"), ((0, 16, 32, 32), "blue")):
        upright.paste(colour, box)
    turn_back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(turn_back[orientation]) if orientation in turn_back else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    found = decode_image(encoded(stored, format, exif=exif, quality=95), LIMITS)
    assert found.size == (64, 32)
    np.testing.assert_allclose(
        np.asarray(found, np.int16)[4:-4:8, 4:-4:8], np.asarray(upright, np.int16)[4:-4:8, 4:-4:8], atol=6
    )


def test_exif_orientation_of_a_photograph_changes_only_its_orientation() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded(photograph("rocket.jpg"), "JPEG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = original(ImageOps.exif_transpose(image), clip_preprocessing())
    np.testing.assert_array_equal(ours(data, clip_preprocessing()), expected)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientation_that_means_nothing_is_ignored(value: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    assert decode_image(encoded(SMALL, "JPEG", exif=exif), LIMITS).size == SMALL.size


EXIF_GARBAGE = {
    "no header": b"garbage",
    "no TIFF header": b"Exif\0\0garbage",
    "offset beyond the end": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "half a directory": b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01\x12\0\x03\0\0\0\x01",
}


@pytest.mark.parametrize("kind", EXIF_GARBAGE)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_corrupt_exif_does_not_cost_the_picture(format: str, kind: str) -> None:
    found = decode_image(encoded(SMALL, format, exif=EXIF_GARBAGE[kind], lossless=True), LIMITS)
    assert found.size == SMALL.size


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(format: str) -> None:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 3
    found = np.asarray(decode_image(data, LIMITS))
    assert found.shape == (20, 30, 3)
    assert (found == (255, 0, 0)).all()


def test_telephone_photographs_of_several_pictures_are_jpegs() -> None:
    """MPO: a JPEG with more pictures behind it, as many cameras write."""
    data = encoded(SMALL, "MPO", save_all=True, append_images=[SMALL.rotate(180)])
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO"
        expected = original(image, clip_preprocessing())
    np.testing.assert_array_equal(ours(data, clip_preprocessing()), expected)
