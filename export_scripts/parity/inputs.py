"""Inputs for parity checks: seeded, and unlike those that a trace is made with."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from clipserve.preprocessing import ImagePreprocessing
from clipserve.tokens import Tokenizer

# One sentence a script, and what breaks tokenizers: combining marks, right-to-left, emoji, blank, over-long.
SENTENCES = (
    "Two dogs in the snow",
    "A cat on a table",
    "A picture of London at night",
    "Két kutya a hóban",
    "Две собаки на снегу",
    "Δύο σκυλιά στο χιόνι",
    "雪地里的两只狗",
    "雪の中の二匹の犬",
    "눈 속의 개 두 마리",
    "كلبان في الثلج",
    "برف میں دو کتے",
    "बर्फ़ में दो कुत्ते",
    "বরফে দুটি কুকুর",
    "สุนัขสองตัวในหิมะ",
    "ორი ძაღლი თოვლში",
    "ሁለት ውሾች በበረዶ ውስጥ",
    "e\u0301te\u0301 / été, ŝ ð ß",
    "🐶🐶❄️ dogs, snow!?",
    "",
    "   ",
    "snow " * 400,
)

GOLDEN_SENTENCE = "Two dogs in the snow / 雪の中の二匹の犬 / كلبان في الثلج"


def photograph_like(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A random RGB picture with the 1/f spectrum of photographs, so that resizing has work to do."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / max(width, height))
    channels = []
    for _ in range(3):
        phase = np.exp(2j * np.pi * rng.random((height, width)))
        field = np.fft.ifft2(amplitude * phase).real
        field = (field - field.mean()) / field.std()
        channels.append(np.clip(127 + 55 * field, 0, 255))
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def pictures(seed: int) -> list[Image.Image]:
    """Photograph-like pictures of odd sizes: landscape, portrait, smaller than the crop, square."""
    rng = np.random.default_rng(seed)
    return [photograph_like(rng, w, h) for w, h in ((640, 427), (301, 500), (97, 61), (224, 224))]


def cropped_noise(seed: int, count: int, preprocessing: ImagePreprocessing) -> list[Image.Image]:
    """Uniform noise that already has the crop's size: the hardest case for rounding."""
    rng = np.random.default_rng(seed)
    shape = (preprocessing.crop_height, preprocessing.crop_width, 3)
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)]


@dataclass(frozen=True)
class PictureFile:
    """A picture as it is sent, and as its original is to be given it.

    Attributes:
        name: what it is an example of.
        data: the encoded file.
        original: of the same bytes, through Pillow alone and none of our code. Where a server does something
            by design that the original leaves to its caller, it has been done here.
    """

    name: str
    data: bytes
    original: Image.Image


def picture_files(seed: int, edge: int, draft_factor: int) -> list[PictureFile]:
    """Files of the kinds that a server decodes each in a way of its own.

    Args:
        edge: what the shorter side is resized to, pixels.
        draft_factor: see `decode_image`; the large JPEG is one that is just decoded at half its size.
    """
    rng = np.random.default_rng(seed)
    # Too small for any of their pixels to be left out.
    small = (2 * edge + 16, 3 * edge // 2)
    jpeg = _encoded(photograph_like(rng, *small), "JPEG", quality=90)
    logo = photograph_like(rng, *small).convert("RGBA")
    logo.putalpha(photograph_like(rng, *small).convert("L"))
    png = _encoded(logo, "PNG")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise by a quarter
    turned = _encoded(photograph_like(rng, *small), "JPEG", quality=90, exif=exif)
    side = 2 * max(draft_factor, 2) * edge
    # Enlarged, since millions of random pixels take seconds.
    photograph = photograph_like(rng, *small).resize((3 * side // 2, side))
    large = _encoded(photograph, "JPEG", quality=90)
    reduced = Image.open(io.BytesIO(large))
    if draft_factor:
        # The decoder itself is asked to leave out what a picture of half the size does not show.
        reduced.draft(None, (reduced.width // 2, reduced.height // 2))
    return [
        PictureFile("JPEG", jpeg, Image.open(io.BytesIO(jpeg))),
        # The original itself lays it over white.
        PictureFile("PNG with transparency", png, Image.open(io.BytesIO(png))),
        PictureFile("JPEG turned by EXIF", turned, ImageOps.exif_transpose(Image.open(io.BytesIO(turned)))),
        PictureFile("large JPEG, decoded at half its size" if draft_factor else "large JPEG", large, reduced),
    ]


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def golden_png() -> bytes:
    """The golden picture, about 10 kB."""
    return _encoded(photograph_like(np.random.default_rng(7), 72, 56), "PNG", optimize=True)


def random_tokens(
    tokenizer: Tokenizer, definition: str, seed: int, lengths: list[int]
) -> tuple[Tensor, Tensor]:
    """Random ordinary tokens between the tokenizer's own special ones, padded to the longest.

    Args:
        definition: text of its `tokenizer.json`.
        lengths: tokens of each row, special ones included.

    Returns:
        `input_ids`, `attention_mask`, int64 `[len(lengths), max(lengths)]`.
    """
    backend = tokenizers.Tokenizer.from_str(definition)
    special = backend.get_added_tokens_decoder().keys()
    ordinary = np.setdiff1d(np.arange(backend.get_vocab_size()), np.array(sorted(special)))
    rng = np.random.default_rng(seed)
    *first, last = tokenizer.tokenize("").ids
    rows = [(*first, *rng.choice(ordinary, n - 1 - len(first)).tolist(), last) for n in lengths]
    input_ids, attention_mask = tokenizer.pad(rows)
    return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)
