"""Both sides of an open_clip folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clipserve.encoder_spec import FloatArray
from export_scripts.checkpoints.image import image_checkpoint
from export_scripts.checkpoints.open_clip.config import read_config
from export_scripts.checkpoints.open_clip.images import image_model
from export_scripts.checkpoints.open_clip.texts import text_model
from export_scripts.checkpoints.open_clip.tokens import read_texts
from export_scripts.checkpoints.open_clip.transforms import read_transform
from export_scripts.checkpoints.open_clip.weights import read_weights
from export_scripts.checkpoints.pair import ImageCheckpoint, TextCheckpoint
from export_scripts.checkpoints.reading import in_our_words
from export_scripts.checkpoints.text import text_checkpoint
from export_scripts.identity import used_weights, weights_sha256


def load_image(folder: Path, name: str) -> ImageCheckpoint:
    """Loads the image side.

    Raises:
        ExportError: the checkpoint is damaged, or something in it is not supported.
    """
    config = read_config(folder)
    with in_our_words(folder, "cannot load its image encoder"):
        model = image_model(config, read_weights(folder))
        transform = read_transform(config, model.tower.size[0])

    def reference(images: Sequence[Image.Image]) -> FloatArray:
        with torch.inference_mode():
            embedding: Tensor = model.original(transform([_over_white(image) for image in images]))
        return embedding.numpy()

    tower = replace(model.tower, preprocessing=lambda *_: transform.preprocessing)
    return image_checkpoint(name, tower, transform, folder, reference)


def load_text(folder: Path, name: str) -> TextCheckpoint:
    """Loads the text side.

    Raises:
        ExportError: the checkpoint is damaged, or something in it is not supported.
    """
    config = read_config(folder)
    with in_our_words(folder, "cannot load its text encoder"):
        weights = read_weights(folder)
        model = text_model(config, weights)
        texts = read_texts(config)
        image = image_model(config, weights)

    def reference(input_ids: Tensor, attention_mask: Tensor) -> FloatArray:
        with torch.inference_mode():
            embedding: Tensor = model.original(input_ids, attention_mask)
        return embedding.numpy()

    return text_checkpoint(
        name,
        model.tower,
        texts.tokenizer,
        model.context_length,
        folder,
        reference,
        lambda sentences: reference(*texts.original(sentences, model.context_length)),
        image_weights_sha256=weights_sha256(used_weights(*image.tower.parts)),
    )


def _over_white(image: Image.Image) -> Image.Image:
    """In RGB. open_clip drops an alpha channel, and shows what lies under it; see docs/parity.md."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
