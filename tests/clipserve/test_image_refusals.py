"""What is refused: too large, damaged, of no admitted format."""

from __future__ import annotations

import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from clipserve.errors import RequestError
from clipserve.image_formats import FORMATS
from clipserve.images import ImageLimits, PixelArray, decode_image, preprocess
from tests.clipserve.pictures import (
    LIMITS,
    PHOTOGRAPHS,
    SMALL,
    clip_preprocessing,
    encoded,
    ours,
    refused,
)


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
