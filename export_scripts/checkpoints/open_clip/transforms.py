"""open_clip's evaluation transforms: what a configuration says of them, and the same once more with Pillow.

With torchvision's rules: the longer side is cut off to whole pixels, and half of an odd rest rounds to even.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipserve.preprocessing import ImagePreprocessing
from export_scripts.checkpoints.open_clip.config import Config

# OpenAI's, which open_clip takes where a configuration says nothing.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# By Pillow's names. In evaluation open_clip takes `random` for bicubic.
RESAMPLES = {"bicubic": "bicubic", "random": "bicubic", "bilinear": "bilinear"}


@dataclass(frozen=True)
class Transform:
    """How pictures become pixels.

    Attributes:
        edge: of the pixels, which are square.
        resample: name of a `PIL.Image.Resampling` member in lower case.
        squash: whether the aspect ratio is given up, and nothing cropped.
        mean, std: per RGB channel, of pixels scaled to [0, 1].
    """

    edge: int
    resample: str
    squash: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """As a spec says it."""
        return ImagePreprocessing(
            self.edge,
            self.edge,
            self.edge,
            self.resample,
            self.mean,
            self.std,
            resize="squash" if self.squash else "shortest_edge",
            crop_offset="floor" if self.squash else "round",
        )

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Normalised pixels, float32 `[N, 3, H, W]`, of pictures in RGB."""
        pixels = np.stack([np.asarray(self._cropped(image), np.float32) for image in images])
        mean, std = (np.array(values, np.float32) for values in (self.mean, self.std))
        scaled = (pixels / np.float32(255) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))

    def _cropped(self, image: Image.Image) -> Image.Image:
        filter, edge = Image.Resampling[self.resample.upper()], self.edge
        if self.squash:
            return image.resize((edge, edge), filter)
        shorter, longer = sorted(image.size)
        other = int(edge * longer / shorter)
        resized = image.resize((edge, other) if image.width <= image.height else (other, edge), filter)
        left, top = (round((side - edge) / 2) for side in resized.size)
        return resized.crop((left, top, left + edge, top + edge))


def read_transform(config: Config, edge: int) -> Transform:
    """What a configuration says of pictures of this edge.

    Raises:
        ExportError: something that is not supported.
    """
    section = config.preprocessing
    found = section.read(
        {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"},
        # open_clip takes the size from the model, and the colour from nowhere but `longest`.
        {"mode": "RGB"},
        ("size", "fill_color"),
    )
    if found["interpolation"] not in RESAMPLES:
        raise section.refusal("interpolation", *RESAMPLES)
    if found["resize_mode"] not in ("shortest", "squash"):
        raise section.refusal("resize_mode", "shortest", "squash")
    mean, std = (
        tuple(map(float, value if isinstance(value, list | tuple) else [value] * 3))
        for value in (found["mean"], found["std"])
    )
    return Transform(edge, RESAMPLES[found["interpolation"]], found["resize_mode"] == "squash", mean, std)
