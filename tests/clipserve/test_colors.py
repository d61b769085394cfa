"""CASES 15: pictures with a colour profile."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageCms

from clipserve.colors import Color, to_srgb
from clipserve.images import ImageLimits, decode_image
from reliability.costly import COSTLY
from standins.twenty_files import display_p3, srgb

LIMITS = ImageLimits()
PHOTOGRAPHS = Path(skimage.data.__file__).parent


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(data: bytes, color: Color = "srgb") -> np.ndarray:
    return np.asarray(decode_image(data, LIMITS, color=color), np.int16)


def patch(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (40, 30), colour)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
def test_display_p3_in_every_format(format: str) -> None:
    """The expected colour is computed from the primaries of both spaces, not with LittleCMS."""
    options = {"lossless": True} if format == "WEBP" else {"quality": 100}
    data = encoded(patch("RGB", (200, 100, 50)), format, icc_profile=display_p3(), **options)
    assert np.abs(decoded(data)[15, 20] - P3_IN_SRGB).max() <= 2
    assert np.abs(decoded(data, "ignore")[15, 20] - (200, 100, 50)).max() <= 2


def p3_in_srgb(colour: tuple[int, int, int]) -> np.ndarray:
    """IEC 61966-2-1's curve and both spaces' primaries at D65."""

    def to_xyz(primaries: list[tuple[float, float]]) -> np.ndarray:
        columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
        white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
        return columns * np.linalg.solve(columns, white)

    encoded = np.array(colour) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    p3 = to_xyz([(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)])
    s = to_xyz([(0.640, 0.330), (0.300, 0.600), (0.150, 0.060)])
    linear = np.linalg.solve(s, p3 @ linear).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


P3_IN_SRGB = p3_in_srgb((200, 100, 50))


@pytest.mark.parametrize("name", ["rocket.jpg", "color.png", "page.png"])
def test_photographs_with_profiles_as_littlecms_manages_them(name: str) -> None:
    """Adobe RGB, a screen's own, grey with dot gain: whole pictures, against one call of ImageCms."""
    data = (PHOTOGRAPHS / name).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        profile = io.BytesIO(image.info["icc_profile"])
        expected = ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
    np.testing.assert_array_equal(decoded(data), np.asarray(expected))
    assert np.abs(decoded(data) - decoded(data, "ignore")).mean() > 1


def test_srgb_leaves_pixels_alone() -> None:
    data = (PHOTOGRAPHS / "coffee.png").read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        tagged = encoded(image, "PNG", icc_profile=srgb())
    assert to_srgb(srgb(), "RGB") is None
    np.testing.assert_array_equal(decoded(tagged), decoded(data))


def test_transparent_pictures_are_managed_before_they_are_laid_over_white() -> None:
    picture = patch("RGBA", (200, 100, 50, 128))
    found = decoded(encoded(picture, "PNG", icc_profile=display_p3()))[15, 20]
    assert np.abs(found - (P3_IN_SRGB * 128 / 255 + 127)).max() <= 2
    palette = patch("RGB", (200, 100, 50)).convert("P", palette=Image.Palette.ADAPTIVE)
    for options in ({}, {"transparency": 255}):
        found = decoded(encoded(palette, "PNG", icc_profile=display_p3(), **options))[15, 20]
        assert np.abs(found - P3_IN_SRGB).max() <= 2


@pytest.mark.parametrize("profile", [b"", b"x", bytes(5000), srgb()[:200], srgb()[:-300], b"\xff" * 5000])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK"])
def test_profiles_that_cannot_be_used_are_ignored(profile: bytes, mode: str) -> None:
    format = "TIFF" if mode == "CMYK" else "PNG"
    plain, tagged = (encoded(patch(mode, None), format, icc_profile=given) for given in (b"", profile))
    np.testing.assert_array_equal(decoded(tagged), decoded(plain))


def test_profile_of_another_colour_space_than_the_pixels() -> None:
    assert to_srgb(display_p3(), "CMYK") is None
    assert to_srgb(display_p3(), "L") is None


@pytest.mark.parametrize("name", [name for name in COSTLY if name.startswith("profile")])
def test_profiles_that_cost_much_are_never_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ATTACKS A5: a profile may hold a program; it is looked at from outside, and left."""
    with Image.open(io.BytesIO(COSTLY[name]())) as image:
        profile = image.info["icc_profile"]
    if "damaged" not in name:
        monkeypatch.setattr(ImageCms, "buildTransform", None)
    assert to_srgb(profile, "RGB") is None


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_grey_with_an_alpha_channel_is_managed_as_grey(format: str) -> None:
    """CASES 15: what is opaque has the same colours whether the file has an alpha channel or not."""
    grey = Image.linear_gradient("L")
    with Image.open(PHOTOGRAPHS / "page.png") as image:
        profile = image.info["icc_profile"]
    expected = decoded(encoded(grey, format, icc_profile=profile))
    assert np.abs(expected - decoded(encoded(grey, format))).max() > 5
    opaque = Image.merge("LA", (grey, Image.new("L", grey.size, 255)))
    assert np.array_equal(decoded(encoded(opaque, format, icc_profile=profile)), expected)
    clear = Image.merge("LA", (grey, Image.new("L", grey.size, 0)))
    assert decoded(encoded(clear, format, icc_profile=profile)).min() == 255
    if format == "PNG":
        marked = decoded(encoded(grey, format, icc_profile=profile, transparency=100))
        assert np.array_equal(marked[:100], expected[:100])
        assert marked[100].min() == 255


def test_a_large_profile_in_a_png() -> None:
    """CASES 22: Pillow refused a PNG with more than 1 MB of a profile or a text, whole as its pixels are."""
    large = display_p3().ljust(2_000_000, b"\0")
    data = encoded(patch("RGB", (200, 100, 50)), "PNG", icc_profile=large)
    assert np.abs(decoded(data, "ignore")[15, 20] - (200, 100, 50)).max() == 0
