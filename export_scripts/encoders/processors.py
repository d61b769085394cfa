"""What families read alike of transformers' image processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from clipserve.errors import ExportError
from clipserve.preprocessing import ImagePreprocessing


def resample_name(number: Any, folder: Path) -> str:
    """`ImagePreprocessing.resample` of an image processor.

    Raises:
        ExportError: it is none of Pillow's.
    """
    try:
        return Image.Resampling(int(number)).name.lower()
    except (TypeError, ValueError) as error:
        raise ExportError(
            f"{folder}: resample {number!r} is none of Pillow's filters, which are numbers"
        ) from error


def squashed(processor: Any, folder: Path, name: str) -> ImagePreprocessing:
    """Squashed to height and width, rescaled to [0, 1], and normalised; all of it or nothing.

    A crop of what has that size already takes nothing away. Whether the processor converts to RGB is not
    asked: pictures come in RGB, transparency over white.

    Args:
        name: of the family, for messages.

    Raises:
        ExportError: the processor does something else.
    """
    steps = ("do_resize", "do_rescale", "do_normalize")
    missing = [step for step in steps if not getattr(processor, step, False)]
    size = dict(processor.size)
    cropped = bool(getattr(processor, "do_center_crop", False)) and dict(processor.crop_size or {}) != size
    rescaled = abs(processor.rescale_factor * 255 - 1) < 1e-6
    if missing or size.keys() != {"height", "width"} or cropped or not rescaled:
        raise ExportError(
            f"{folder}: preprocessing other than {name}'s own is not supported (missing: {missing}, size: "
            f"{size}, do_center_crop: {cropped}, rescale_factor: {processor.rescale_factor})"
        )
    return ImagePreprocessing(
        shortest_edge=max(size.values()),
        crop_height=size["height"],
        crop_width=size["width"],
        resample=resample_name(processor.resample, folder),
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        resize="squash",
    )
