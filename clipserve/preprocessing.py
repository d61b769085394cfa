"""How an encoder's inputs are made from a picture or a text: two sections of its spec.

What differs between families is a named value here, with the first family's as default: an identity is taken
of what differs from the defaults (`export_scripts.identity`), so that a new field changes no older encoder's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# Names of PIL.Image.Resampling, in lower case.
RESAMPLES = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")

Resize = Literal["shortest_edge", "squash"]
CropOffset = Literal["floor", "round"]
Padding = Literal["longest", "context_length"]


@dataclass(frozen=True)
class Varying:
    """A size that differs from batch to batch, from 1 to `most`; None where there is no bound."""

    name: str
    most: int | None


@dataclass(frozen=True)
class EncoderInput:
    """One tensor that an encoder takes.

    Attributes:
        name: of the graph's argument.
        row: its shape without the first dimension, which is the batch.
    """

    name: str
    dtype: Literal["uint8", "int64"]
    row: tuple[int | Varying, ...]


@dataclass(frozen=True)
class ImagePreprocessing:
    """How pixels are made from a picture; rescaling and mean/std are inside the graph.

    Attributes:
        shortest_edge: the picture is resized so that its shorter side has this many pixels; of a squashed one
            the longer side of what it becomes.
        crop_height, crop_width: centre crop after resizing, pixels.
        resample: name of a `PIL.Image.Resampling` member in lower case.
        mean, std: per RGB channel, of pixels scaled to [0, 1]; recorded, already applied by the graph.
        resize: `shortest_edge` keeps the aspect ratio; `squash` resizes to `crop_height` x `crop_width`,
            whatever the aspect ratio was, and crops nothing.
        crop_offset: where an odd number of pixels is cropped off: half of them rounded down before the crop
            (`floor`), as transformers has it; or to the nearest even number (`round`), as torchvision has it.
    """

    shortest_edge: int
    crop_height: int
    crop_width: int
    resample: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Resize = "shortest_edge"
    crop_offset: CropOffset = "floor"

    @property
    def inputs(self) -> tuple[EncoderInput, ...]:
        """What the encoder takes, in this order."""
        return (EncoderInput("pixel_values", "uint8", (3, self.crop_height, self.crop_width)),)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a picture after resizing, before it is cropped."""
        if self.resize == "squash":
            return self.crop_width, self.crop_height
        return shortest_edge_size(width, height, self.shortest_edge)

    def crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the crop in a resized picture of this width and height."""
        left, top = (
            round(rest / 2) if self.crop_offset == "round" else rest // 2
            for rest in (width - self.crop_width, height - self.crop_height)
        )
        return left, top, left + self.crop_width, top + self.crop_height

    def rules(self) -> Iterator[tuple[str, bool]]:
        """Each field whose type says too little, and whether its value makes sense."""
        yield "resample", self.resample in RESAMPLES
        yield "shortest_edge", self.shortest_edge > 0
        yield "crop_height", 0 < self.crop_height <= self.shortest_edge
        yield "crop_width", 0 < self.crop_width <= self.shortest_edge
        yield "mean", len(self.mean) == 3
        yield "std", len(self.std) == 3 and all(s > 0 for s in self.std)
        longer = max(self.crop_height, self.crop_width)
        yield "resize", self.resize == "shortest_edge" or self.shortest_edge == longer

    @property
    def wanted_pixels(self) -> str:
        """What an encoder says to other pixels, from which it would make another vector."""
        return (
            f"pixel_values must be uint8 [N, 3, {self.crop_height}, {self.crop_width}], RGB, 0 to 255, "
            f"{'squashed' if self.resize == 'squash' else 'resized and cropped'}; rescaling to [0, 1], mean "
            "and std are inside the encoder"
        )


def shortest_edge_size(width: int, height: int, edge: int) -> tuple[int, int]:
    """Width and height of a picture whose shorter side becomes `edge`."""
    # The longer side is truncated, not rounded: get_resize_output_image_size of transformers.
    return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)


@dataclass(frozen=True)
class TextPreprocessing:
    """How tokens are made from a text.

    Attributes:
        context_length: the most tokens an input may have, special tokens included.
        vocabulary_size: rows of the embedding table; every token id is below it.
        pad_token_id: fills `input_ids` where `attention_mask` is 0.
        tokenizer_sha256: of the `tokenizer.json` inside the encoder file.
        padding: to the `longest` text of a batch, behind a mask, so that no vector depends on it; or of each
            text to the `context_length`, where the encoder sees it.
    """

    context_length: int
    vocabulary_size: int
    pad_token_id: int
    tokenizer_sha256: str
    padding: Padding = "longest"

    @property
    def inputs(self) -> tuple[EncoderInput, ...]:
        """What the encoder takes, in this order."""
        fixed = self.padding == "context_length"
        row = (self.context_length if fixed else Varying("length", self.context_length),)
        return EncoderInput("input_ids", "int64", row), EncoderInput("attention_mask", "int64", row)

    def padded(self, longest: int) -> int:
        """Tokens of every row of a batch whose longest text has so many."""
        return self.context_length if self.padding == "context_length" else longest

    def rules(self) -> Iterator[tuple[str, bool]]:
        """Each field whose type says too little, and whether its value makes sense."""
        yield "context_length", self.context_length > 2
        yield "vocabulary_size", self.vocabulary_size > 0
        yield "pad_token_id", 0 <= self.pad_token_id < self.vocabulary_size
