"""A model of two towers as transformers saves it: `config.json`, an image processor and a tokenizer.

The original is transformers' own model. How its texts become tokens is the layout's to say, for the tokenizer
beside the model often leaves out what the model was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from clipserve.encoder_spec import FloatArray
from export_scripts.checkpoints.image import image_checkpoint, pillow_processor
from export_scripts.checkpoints.pair import ImageCheckpoint, TextCheckpoint
from export_scripts.checkpoints.reading import (
    check_complete,
    in_our_words,
    model_type,
    move_to_own_memory,
)
from export_scripts.checkpoints.text import check_sentencepiece, check_vocabulary, text_checkpoint
from export_scripts.encoders.towers import Family
from export_scripts.identity import used_weights, weights_sha256


@dataclass(frozen=True)
class Texts:
    """How texts become tokens.

    Attributes:
        tokenizer: in its `tokenizers` form, with all that is done to a text.
        original: the same by other code: texts, and the most tokens, to `input_ids` and `attention_mask`,
            int64 `[N, L]`.
    """

    tokenizer: Any
    original: Callable[[Sequence[str], int], tuple[Tensor, Tensor]]


def matches(family: Family, folder: Path) -> bool:
    """Whether this is one of the family, without modules of sentence-transformers around it."""
    return not (folder / "modules.json").is_file() and model_type(folder) == family.model_type


def load_image(family: Family, folder: Path, name: str) -> ImageCheckpoint:
    """Loads the image side.

    Raises:
        ExportError: the checkpoint is damaged, or prepares pictures in a way that is not supported.
    """
    model, processor = _model(family, folder), pillow_processor(folder)

    def reference(images: Sequence[Image.Image]) -> FloatArray:
        # Some configurations leave open whether there is an alpha channel to be laid over white.
        pixels = processor(list(images), do_convert_rgb=True, return_tensors="pt")
        return _embedding(model.get_image_features, **pixels)

    return image_checkpoint(name, family.image_tower(model), processor, folder, reference)


def load_text(family: Family, load_texts: Callable[[Path], Texts], folder: Path, name: str) -> TextCheckpoint:
    """Loads the text side.

    Raises:
        ExportError: the checkpoint is damaged, or its tokenizer is of no supported kind.
    """
    model = _model(family, folder)
    tower = family.text_tower(model)
    with in_our_words(folder, "its tokenizer cannot be loaded"):
        texts = load_texts(folder)
    context_length = min(family.most_tokens or tower.positions, tower.positions)

    def reference(input_ids: Tensor, attention_mask: Tensor) -> FloatArray:
        # What pads to the context length was trained to see the padding.
        seen = {"attention_mask": attention_mask} if tower.padding == "longest" else {}
        return _embedding(model.get_text_features, input_ids=input_ids, **seen)

    return text_checkpoint(
        name,
        tower,
        texts.tokenizer,
        context_length,
        folder,
        reference,
        lambda sentences: reference(*texts.original(sentences, context_length)),
        image_weights_sha256=weights_sha256(used_weights(*family.image_tower(model).parts)),
    )


def own_tokenizer(folder: Path) -> Texts:
    """Tokens as the tokenizer beside the model makes them, padded to the longest text and masked.

    Raises:
        ExportError: there is none, or it cannot be read.
    """
    check_vocabulary(folder)
    check_sentencepiece(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def original(texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return tokens["input_ids"], tokens["attention_mask"]

    return Texts(tokenizer, original)


def _embedding(features: Callable[..., Any], **inputs: Tensor) -> FloatArray:
    with torch.inference_mode():
        embedding: Tensor = features(**inputs).pooler_output
    return embedding.numpy()


def _model(family: Family, folder: Path) -> Any:
    """The original in float32, whatever precision its weights lie in."""
    with in_our_words(folder, "transformers cannot load it"):
        check_complete(family.model, folder)
        model: Any = family.model.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    move_to_own_memory(model)
    for config in (model.config, model.config.vision_config, model.config.text_config):
        # Answers have names, whatever it says.
        config.return_dict = True
    return model.float().eval()
