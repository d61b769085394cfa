"""Brings pictures to RGB: transparency over white, colour profiles to sRGB, which encoders were trained in.

Every iPhone writes Display P3, cameras and scanners write Adobe RGB, print shops CMYK. Without their profile
such pictures look paler than they are. A profile comes from the caller: it is read only within bounds, and
one that cannot be used is ignored, as viewers do.
"""

from __future__ import annotations

import functools
import io
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageCms

Color = Literal["srgb", "ignore"]
COLORS: tuple[str, ...] = get_args(Color)

MAX_PROFILE_BYTES = 4_000_000  # those of printers, the largest, have up to 2.8 MB
MAX_TAGS = 100  # LittleCMS' own limit
HEADER_BYTES = 132  # with the number of tags
# Input, display, output and colour space profiles; not device links, named colours and abstract ones.
CLASSES = (b"scnr", b"mntr", b"prtr", b"spac")
SPACES = {"L": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB ", "CMYK": b"CMYK"}

# Levels of 255 on a grid over all colours, up to which a profile counts as sRGB: the many variants of sRGB's
# own differ by rounding, and the pixels of such pictures are left as they are.
SAME = 2
GRID = 9  # points a channel

TILE = 512  # pixels, the side of what is laid over white at once
WHITE = (255, 255, 255)

TRANSFORMS = 8  # kept; one takes up to 2 MB, and a folder of pictures has few


def to_rgb(image: Image.Image, color: Color) -> Image.Image:
    """A picture in mode RGB, transparency over white; the picture itself, changed, where it is RGB already.

    Args:
        image: decoded, of any mode.
        color: `srgb` brings its pixels to sRGB if it has a colour profile, `ignore` leaves them as they are.
    """
    profile = image.info.get("icc_profile") if color == "srgb" else None
    if not isinstance(profile, bytes):
        profile = b""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        return _over_white(image, profile)
    if image.mode in ("L", "CMYK") and (transform := to_srgb(profile, image.mode)) is not None:
        converted = ImageCms.applyTransform(image, transform)
        if converted is not None:
            return converted
    image = image if image.mode == "RGB" else image.convert("RGB")
    if (transform := to_srgb(profile, "RGB")) is not None:
        ImageCms.applyTransform(image, transform, inPlace=True)
    return image


def _over_white(image: Image.Image, profile: bytes) -> Image.Image:
    rgb = Image.new("RGB", image.size, WHITE)
    transform = to_srgb(profile, "RGBA")
    # Of grey with an alpha channel LittleCMS takes the grey alone.
    grey = to_srgb(profile, "L") if image.mode in ("L", "LA") else None
    # Grey stays grey until the end: the same numbers, a third less work.
    mode = "LA" if image.mode == "LA" and transform is None and grey is None else "RGBA"
    white = (*WHITE[: len(mode) - 1], 255)
    # Tile by tile: as a whole it would take four bytes a pixel three times over.
    for top in range(0, image.height, TILE):
        for left in range(0, image.width, TILE):
            box = (left, top, min(left + TILE, image.width), min(top + TILE, image.height))
            tile = image.crop(box).convert(mode)
            if grey is not None:
                tile = _managed_grey(tile, grey)
            least, most = tile.getchannel("A").getextrema()
            if most == 0:
                continue
            if transform is not None:
                ImageCms.applyTransform(tile, transform, inPlace=True)
            if least != 255:
                tile = Image.alpha_composite(Image.new(mode, tile.size, white), tile)
            rgb.paste(tile.convert("RGB"), box)
    return rgb


def _managed_grey(tile: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """Grey pixels in mode RGBA, brought to sRGB with their alpha as it was."""
    managed = ImageCms.applyTransform(tile.getchannel("R"), transform)
    if managed is None:
        return tile
    managed.putalpha(tile.getchannel("A"))
    return managed


@functools.lru_cache(TRANSFORMS)
def to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What brings pixels of a mode from a profile to sRGB.

    Args:
        profile: an ICC profile, from whoever sent the picture.
        mode: L, RGB, RGBA or CMYK. RGBA stays RGBA, the others become RGB.

    Returns:
        None: the profile is sRGB, of another colour space than the pixels, damaged, or beyond a limit.
    """
    if not _is_plausible(profile, SPACES[mode]):
        return None
    output = "RGBA" if mode == "RGBA" else "RGB"
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            output,
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        grid = _grid(mode)
        changed = ImageCms.applyTransform(grid, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode == "CMYK" or changed is None:
        return transform
    before, after = (np.asarray(image.convert("RGB"), np.int16) for image in (grid, changed))
    return transform if np.abs(after - before).max() > SAME else None


def _is_plausible(profile: bytes, space: bytes) -> bool:
    if not HEADER_BYTES <= len(profile) <= MAX_PROFILE_BYTES:
        return False
    if profile[12:16] not in CLASSES or profile[16:20] != space:
        return False
    # Multi-process elements: a program of any length, run for each of 36,000 points of the table that is
    # made.
    return int.from_bytes(profile[128:132], "big") <= MAX_TAGS and b"mpet" not in profile


def _grid(mode: str) -> Image.Image:
    """Colours from all over a mode's range."""
    levels = np.linspace(0, 255, GRID).round().astype(np.uint8)
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    return Image.fromarray(colours).convert(mode)
