"""Brings pictures with a colour profile to sRGB, the space that encoders were trained in.

Every iPhone writes Display P3, cameras and scanners write Adobe RGB, print shops CMYK. Without their profile
such pictures look paler than they are. A profile comes from the caller: it is read only within bounds, and
one that cannot be used is ignored, as viewers do.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

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

TRANSFORMS = 8  # kept; one takes up to 2 MB, and a folder of pictures has few


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
