from __future__ import annotations

import io
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin
from transformers import CLIPImageProcessorPil

from benchmarks.pictures import rings, stripes
from clipserve.colors import Color
from clipserve.encoder_spec import ImagePreprocessing
from clipserve.errors import RequestError
from clipserve.image_formats import FORMATS
from clipserve.images import ImageLimits, PixelArray, decode_image, preprocess
from clipserve.settings import Settings

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


# ---- the same pixels as the original processor


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


def with_alpha(mode: str) -> Image.Image:
    """A photograph that fades out from left to right."""
    picture = photograph("coffee.png").resize((120, 90))
    fade = Image.fromarray(np.tile(np.linspace(0, 255, 120).astype(np.uint8), (90, 1)))
    picture = picture.convert("L" if mode == "LA" else "RGB")
    picture.putalpha(fade)
    return picture


def palette_with_transparency(format: str) -> bytes:
    picture = photograph("coffee.png").resize((120, 90)).convert("P", palette=Image.Palette.ADAPTIVE)
    most_used = int(np.bincount(np.asarray(picture).ravel()).argmax())
    return encoded(picture, format, transparency=most_used)


def grey_16_bit() -> bytes:
    # Values below and above 255: Pillow clips, and so must we.
    values = np.asarray(photograph("camera.png").resize((120, 90)), dtype=np.uint16) * 2
    return encoded(Image.fromarray(values), "PNG")


SMALL = photograph("coffee.png").resize((120, 90))
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


# ---- refusals


def png_header(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG whose header says `width` x `height`, whatever is behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def test_no_bytes() -> None:
    error = refused(b"")
    assert (error.code, error.status) == ("empty_image", 400)


def test_too_many_bytes() -> None:
    data = encoded(SMALL, "PNG")
    assert decode_image(data, ImageLimits(max_bytes=len(data))).size == SMALL.size
    error = refused(data, ImageLimits(max_bytes=len(data) - 1))
    assert (error.code, error.status) == ("image_too_large", 413)
    assert str(len(data)) in error.message
    assert str(len(data) - 1) in error.message


@pytest.mark.parametrize(
    ("format", "mode", "pixel_bytes"),
    [
        ("JPEG", "RGB", 8), ("JPEG", "L", 5), ("JPEG", "CMYK", 8), ("PNG", "RGB", 8), ("PNG", "P", 5),
        ("PNG", "LA", 8), ("WEBP", "RGB", 18), ("GIF", "P", 5), ("BMP", "RGB", 8), ("TIFF", "CMYK", 8),
        ("AVIF", "RGB", 16), ("HEIF", "RGB", 16),
    ],
)  # fmt: skip
def test_memory_limit(format: str, mode: str, pixel_bytes: int) -> None:
    """CASES 20: what counts is what decoding takes, by format and mode."""
    if plugin := FORMATS[format].plugin:
        pytest.importorskip(plugin.module)
        plugin.register()
    data = encoded(SMALL.convert(mode), format)
    needed = pixel_bytes * 120 * 90
    assert decode_image(data, ImageLimits(max_memory=needed), shortest_edge=90).size == SMALL.size
    error = refused(data, ImageLimits(max_memory=needed - 1), shortest_edge=90)
    assert (error.code, error.status) == ("image_too_large", 413)
    assert f"120 x 90 pixels, which take {needed} bytes" in error.message
    assert str(needed - 1) in error.message


@pytest.mark.parametrize(
    "size", [(5400, 5300), (9000, 9000), (13000, 13000), (30000, 30000), (2**31 - 1, 1)], ids=str
)
def test_memory_limit_is_checked_before_decoding(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below, at and beyond Pillow's own limits, whose warning is not to slip through."""

    def never(self: PngImagePlugin.PngImageFile) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", never)
    error = refused(png_header(*size))
    assert (error.code, error.status) == ("image_too_large", 413)


@pytest.mark.parametrize(
    "size",
    [
        (9000, 9000),
        (13000, 13000),
        (30000, 30000),
    ],
    ids=str,
)
def test_memory_limit_that_is_named_is_ours(size: tuple[int, int]) -> None:
    assert str(LIMITS.max_memory) in refused(png_header(*size)).message


def test_decompression_bomb_warning_is_an_answer_and_not_a_warning() -> None:
    # Pillow warns between its limit of 89 million pixels and twice that.
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        error = refused(png_header(13000, 13000))
    assert (error.code, error.status) == ("image_too_large", 413)
    assert seen == []


@pytest.mark.parametrize("size", [(3, 300), (300, 3)], ids=str)
def test_pictures_as_long_as_the_aspect_ratio_allows(size: tuple[int, int]) -> None:
    assert decode_image(encoded(Image.new("RGB", size), "PNG"), LIMITS).size == size


@pytest.mark.parametrize("size", [(3, 301), (301, 3)], ids=str)
def test_strips_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    error = refused(png_header(*size))
    assert (error.code, error.status) == ("image_too_large", 413)
    assert "up to 100 times" in error.message


@pytest.mark.parametrize("size", [(1, 1200), (1200, 1)], ids=str)
def test_long_and_thin_picture_whose_resized_form_is_too_large(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size)
    with pytest.raises(RequestError) as caught:
        preprocess(picture, clip_preprocessing(224), LIMITS)
    assert (caught.value.code, caught.value.status) == ("image_too_large", 413)
    # Within the limit it is made.
    assert preprocess(picture, clip_preprocessing(48), LIMITS).shape == (3, 48, 48)


@pytest.mark.parametrize("name", ["rocket.jpg", "coffee.png"])
def test_truncated_files(name: str) -> None:
    data = (PHOTOGRAPHS / name).read_bytes()
    # Up to where the pixels end: what a PNG has behind them is a checksum and an end mark.
    lengths = {*range(1, 40), *np.geomspace(40, len(data) - 200, 40).astype(int).tolist()}
    for length in sorted(lengths):
        error = refused(data[:length])
        assert (error.code, error.status) in (
            ("unsupported_image_format", 415), ("invalid_image", 400),
        ), length  # fmt: skip


@pytest.mark.parametrize("format", ["GIF", "WEBP", "BMP"])
def test_truncated_files_of_other_formats(format: str) -> None:
    data = encoded(SMALL, format)
    for length in np.geomspace(1, len(data) * 0.6, 25).astype(int):
        assert refused(data[:length]).code in ("unsupported_image_format", "invalid_image"), length


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"not a picture",
        b"x" * 5000,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"GIF89a",
        b"BM",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP",
        b"\x89PNG\r\n\x1a\n",
    ],
    ids=repr,
)
def test_bytes_that_are_no_picture(data: bytes) -> None:
    error = refused(data)
    assert (error.code, error.status) == ("unsupported_image_format", 415)
    assert all(name in error.message for name in LIMITS.formats)


@pytest.mark.parametrize(
    "format", sorted({"ICO", "PPM", "TGA", "PCX", "EPS", "JPEG2000", "DIB", "QOI"} - FORMATS.keys())
)
def test_formats_that_are_not_admitted_are_never_tried(format: str) -> None:
    error = refused(encoded(SMALL, format))
    assert (error.code, error.status) == ("unsupported_image_format", 415)


def test_admitted_formats_are_a_setting() -> None:
    limits = ImageLimits(formats=("PNG",))
    assert decode_image(encoded(SMALL, "PNG"), limits).size == SMALL.size
    error = refused(encoded(SMALL, "JPEG"), limits)
    assert error.status == 415
    assert "PNG" in error.message
    assert "JPEG" not in error.message


def test_scans_of_a_progressive_jpeg() -> None:
    """A scan takes some bytes to send, and the whole picture's time to decode."""
    data = encoded(SMALL, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    many = data[:last] + data[last:-2] * 200 + data[-2:]
    error = refused(many)
    assert (error.code, error.status) == ("image_too_large", 413)
    assert "allowed are 64" in error.message
    assert decode_image(many, ImageLimits(max_scans=1000)).size == SMALL.size
    assert decode_image(data, ImageLimits(max_scans=data.count(b"\xff\xda"))).size == SMALL.size


def test_text_that_unpacks_to_megabytes_is_refused() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 10_000_000, zip=True)
    data = encoded(SMALL, "PNG", pnginfo=info)
    assert len(data) < 100_000
    assert refused(data).code == "invalid_image"


FUZZED = [encoded(SMALL.resize((24, 18)), f) for f in FORMATS if not FORMATS[f].plugin]


@settings(max_examples=400, deadline=None)
@given(
    data=st.sampled_from(FUZZED),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    end=st.floats(0, 1),
)
def test_damaged_pictures_are_a_picture_or_a_4xx(
    data: bytes, edits: list[tuple[float, int]], end: float
) -> None:
    damaged = bytearray(data)
    for place, value in edits:
        damaged[int(place * len(damaged))] = value
    outcome = pixels_or_error(bytes(damaged[: int(end * len(damaged)) + 1]))
    if isinstance(outcome, RequestError):
        assert 400 <= outcome.status < 500
        assert len(outcome.message) < 300
    else:
        assert outcome.shape == (3, 8, 8)


def pixels_or_error(data: bytes) -> PixelArray | RequestError:
    try:
        return ours(data, clip_preprocessing(8))
    except RequestError as error:
        return error


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_4xx(data: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        decode_image(data, LIMITS)
    assert 400 <= caught.value.status < 500


# ---- large JPEGs at a reduced size


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(1411, 1411), (3001, 2001), (1200, 2600)])
def test_reduced_decoding_hardly_changes_pixels(size: tuple[int, int], progressive: bool) -> None:
    source = photograph("retina.jpg").resize(size, Image.Resampling.BICUBIC)
    data = encoded(source, "JPEG", quality=90, progressive=progressive)
    preprocessing = clip_preprocessing(224)
    reduced = decode_image(data, LIMITS, shortest_edge=224, draft_factor=2)
    assert 2 * 224 <= min(reduced.size) < min(size)
    difference = preprocess(reduced, preprocessing, LIMITS) - ours(data, preprocessing).astype(np.float64)
    assert np.abs(difference).mean() < 1.0


def test_small_jpegs_and_other_formats_are_decoded_whole() -> None:
    source = photograph("retina.jpg")
    for data in (
        encoded(source, "PNG"),
        encoded(source.resize((894, 1000)), "JPEG"),
        # At half its size it would be resized to 224 x 483, not 484, and cropped a pixel beside.
        encoded(source.resize((1203, 2600)), "JPEG"),
    ):
        with Image.open(io.BytesIO(data)) as image:
            assert decode_image(data, LIMITS, shortest_edge=224, draft_factor=2).size == image.size


def test_reduced_decoding_keeps_the_orientation() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded(photograph("retina.jpg").resize((1600, 1200)), "JPEG", exif=exif)
    assert decode_image(data, LIMITS, shortest_edge=150, draft_factor=2).size == (300, 400)


def test_truncated_files_are_refused_at_a_reduced_size() -> None:
    data = encoded(photograph("retina.jpg"), "JPEG")
    with pytest.raises(RequestError, match="truncated"):
        decode_image(data[: len(data) // 2], LIMITS, shortest_edge=224, draft_factor=1)


@pytest.mark.parametrize(
    ("make", "mean", "most"),
    [
        (lambda side: photograph("coffee.png").resize((side, side)), 0.2, 2),
        (lambda side: photograph("page.png").convert("RGB").resize((side, side)), 0.2, 2),
        (lambda side: stripes(side, 10), 1.0, 5),
        (lambda side: rings(side), 1.0, 10),
    ],
    ids=["photograph", "page", "stripes", "rings"],
)
def test_reduced_decoding_at_the_factor_that_is_served(
    make: Callable[[int], Image.Image], mean: float, most: int
) -> None:
    """CASES 10: levels of 255, at the very size at which reducing begins."""
    factor = Settings().draft_factor
    data = encoded(make(2 * factor * 112), "JPEG", quality=90)
    preprocessing = clip_preprocessing(112)
    reduced = decode_image(data, LIMITS, shortest_edge=112, draft_factor=factor)
    assert reduced.size == (factor * 112, factor * 112)
    difference = preprocess(reduced, preprocessing, LIMITS) - ours(data, preprocessing).astype(np.float64)
    assert np.abs(difference).mean() < mean
    assert np.abs(difference).max() <= most


# ---- large pictures that people have


@pytest.mark.parametrize(
    ("megapixels", "size"),
    [(26, (6240, 4168)), (48, (8064, 6048)), (108, (12000, 9000)), (60, (24000, 2500))],
    ids=["26", "48", "108", "panorama"],
)
def test_large_jpegs(megapixels: int, size: tuple[int, int]) -> None:
    """CASES 20: what is decoded fits in memory, though the whole picture would not."""
    data = encoded(Image.new("RGB", size, "olive"), "JPEG", quality=30)
    for factor in (0, Settings().draft_factor):
        found = decode_image(data, LIMITS, shortest_edge=224, draft_factor=factor)
        assert found.width * found.height * 8 <= LIMITS.max_memory
        assert min(found.size) >= 224
    if megapixels == 26:
        # It fits, so that who asks for the whole gets it.
        assert decode_image(data, LIMITS, shortest_edge=224).size == size


def test_long_screenshot() -> None:
    """CASES 20."""
    data = encoded(Image.new("RGB", (1080, 26_000), "olive"), "PNG")
    assert decode_image(data, LIMITS, shortest_edge=224).size == (1080, 26_000)


def test_large_progressive_jpegs_are_limited_by_what_the_decoder_holds() -> None:
    """CASES 20: all coefficients of all passes, whatever size it makes of them."""
    data = encoded(Image.new("RGB", (12_000, 9_000)), "JPEG", progressive=True, quality=30)
    error = refused(data, shortest_edge=224)
    assert (error.code, error.status) == ("image_too_large", 413)
    assert "bytes of it the decoder's" in error.message


# ---- the formats of one table


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "LA", "P", "1", "I;16", "F"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_tiff_in_every_mode_as_the_original(mode: str, compression: str) -> None:
    """CASES 21."""
    picture = with_alpha(mode) if mode in ("RGBA", "LA") else SMALL
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(SMALL.convert("L"), np.uint16) * 2)
    else:
        picture = picture.convert(mode)
    assert_as_original(encoded(picture, "TIFF", compression=compression), clip_preprocessing(48))


def test_first_page_of_a_tiff() -> None:
    """CASES 21."""
    pages = [Image.new("RGB", (30, 20), colour) for colour in ("red", "lime", "blue")]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert (np.asarray(decode_image(data, LIMITS)) == (255, 0, 0)).all()


def test_tiff_of_16_bits_a_colour() -> None:
    """CASES 21: Pillow takes the upper half of each number."""
    values = np.array([[[0, 32_768, 65_535], [255, 256, 40_000]]], "<u2")
    entries = [(256, 4, 1, 2), (257, 4, 1, 1), (258, 3, 3, 170), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 176), (277, 3, 1, 3), (278, 4, 1, 1), (279, 4, 1, 12)]
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    directory = head + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    data = directory.ljust(170, b"\0") + struct.pack("<HHH", 16, 16, 16) + values.tobytes()
    assert np.asarray(decode_image(data, LIMITS)).tolist() == [[[0, 128, 255], [0, 1, 156]]]


def test_tiff_of_a_rare_compression() -> None:
    """ATTACKS A5: LZMA takes as much memory as the file asks for."""
    error = refused(encoded(SMALL, "TIFF", compression="lzma"))
    assert (error.code, error.status) == ("unsupported_image_format", 415)
    assert "compression 34925" in error.message


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_avif_as_the_original(mode: str) -> None:
    """CASES 21."""
    picture = with_alpha("RGBA") if mode == "RGBA" else SMALL.convert(mode)
    assert_as_original(encoded(picture, "AVIF"), clip_preprocessing(48))


def test_heic() -> None:
    """CASES 21."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    found = np.asarray(decode_image(encoded(SMALL, "HEIF", quality=90), LIMITS), np.int16)
    assert np.abs(found - np.asarray(SMALL, np.int16)).mean() < 6


HEIC_HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic_without_its_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES 21: a message that names what to install."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    error = refused(HEIC_HEAD)
    assert (error.code, error.status) == ("unsupported_image_format", 415)
    assert "clipserve[heic]" in error.message


def test_what_is_no_picture_is_told_what_adds_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text with a picture's name: a decoder that is not there is not among what is allowed as it is."""
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pillow_heif", None)
        assert refused(b"not a picture").message.endswith("BMP, TIFF, AVIF, HEIF after 'make heic')")
    pytest.importorskip("pillow_heif")
    assert refused(b"not a picture").message.endswith("BMP, TIFF, AVIF, HEIF)")


def test_every_format_of_the_table_is_recognised_by_its_files() -> None:
    """CASES 21: the table is complete, and no signature takes another format's file."""
    assert FORMATS["HEIF"].signature.match(HEIC_HEAD)
    for name, format in FORMATS.items():
        if format.plugin:
            continue
        data = encoded(SMALL, name)
        assert [other.name for other in FORMATS.values() if other.signature.match(data)] == [name]
        walked = format.walk(data, 1000)
        assert (walked.width, walked.height) == SMALL.size
        assert all(ending.startswith(".") and ending == ending.lower() for ending in format.endings)


# ---- files that lack their end


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restarts", [0, 3])
@pytest.mark.parametrize("lost", [1, 2])
def test_jpeg_that_lacks_its_end_marker(progressive: bool, restarts: int, lost: int) -> None:
    """CASES 24: the same pixels as with it."""
    data = encoded(SMALL, "JPEG", quality=90, progressive=progressive, restart_marker_blocks=restarts)
    assert data.endswith(b"\xff\xd9")
    found = decode_image(data[:-lost], LIMITS)
    assert found.tobytes() == decode_image(data, LIMITS).tobytes()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restarts", [0, 3])
def test_jpeg_that_lacks_more_than_its_end_marker(progressive: bool, restarts: int) -> None:
    """CASES 24: grey where pixels should be is no picture; at whatever byte the file ends."""
    data = encoded(SMALL, "JPEG", quality=90, progressive=progressive, restart_marker_blocks=restarts)
    start = data.index(b"\xff\xda") + 14
    for length in sorted({*range(len(data) - 40, len(data) - 4), *range(start, len(data) - 40, 37)}):
        error = refused(data[:length])
        assert (error.code, error.status) == ("invalid_image", 400), length
    for restart in re.finditer(rb"\xff[\xd0-\xd7]", data[start:-4]):
        assert refused(data[: start + restart.start()]).status == 400
        assert refused(data[: start + restart.end()]).status == 400


def test_progressive_jpeg_that_lacks_its_last_scans() -> None:
    """CASES 24: it ends exactly where a scan does."""
    data = encoded(SMALL, "JPEG", quality=90, progressive=True)
    scans = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    tables = [data.rindex(b"\xff\xc4", 0, scan) for scan in scans[2:]]
    for cut in (*tables, *scans[2:]):
        assert refused(data[:cut]).code == "invalid_image", cut


@pytest.mark.parametrize(("format", "lost"), [("PNG", 12), ("GIF", 1)])
def test_other_files_that_lack_their_end(format: str, lost: int) -> None:
    """CASES 24: the end of these carries no pixels."""
    data = encoded(SMALL, format)
    assert decode_image(data[:-lost], LIMITS).tobytes() == decode_image(data, LIMITS).tobytes()
