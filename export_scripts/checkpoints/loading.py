"""Loads a pair: finds both checkpoints, and the layout of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from clipserve.errors import ExportError
from export_scripts.checkpoints import m_clip, sentence_transformers, siglip, two_towers
from export_scripts.checkpoints.hub import DEMO_IMAGE, DEMO_TEXT, checkpoint_folder, short_name, spec_name
from export_scripts.checkpoints.licenses import license_of
from export_scripts.checkpoints.open_clip import config as open_clip
from export_scripts.checkpoints.open_clip import loading as open_clip_loading
from export_scripts.checkpoints.pair import CheckpointPair, ImageCheckpoint, TextCheckpoint
from export_scripts.checkpoints.reading import model_type
from export_scripts.checkpoints.two_towers import Texts, own_tokenizer
from export_scripts.encoders import siglip as siglip_encoders
from export_scripts.encoders.supported import FAMILIES, REFUSED, no_image_encoder
from export_scripts.encoders.towers import Family

# The text encoder that a published image checkpoint is served with unless TEXT_MODEL says otherwise.
DEFAULT_TEXT_MODELS = {"clip-ViT-B-32": "clip-ViT-B-32-multilingual-v1"}


@dataclass(frozen=True)
class Layout:
    """A way in which checkpoints lie in a folder.

    Attributes:
        name: in messages.
        matches: whether a folder has it.
        load_text: loads its text encoder, under a name.
        load_image: likewise; None where the layout has no image encoder.
    """

    name: str
    matches: Callable[[Path], bool]
    load_text: Callable[[Path, str], TextCheckpoint]
    load_image: Callable[[Path, str], ImageCheckpoint] | None


# Families whose texts need more than the tokenizer beside the model.
TEXTS: Mapping[str, Callable[[Path], Texts]] = {siglip_encoders.FAMILY.name: siglip.load_texts}


def _two_towers(family: Family) -> Layout:
    """A family as transformers saves it."""
    load_texts = TEXTS.get(family.name, own_tokenizer)
    return Layout(
        family.name,
        partial(two_towers.matches, family),
        partial(two_towers.load_text, family, load_texts),
        partial(two_towers.load_image, family),
    )


# The first that matches is taken.
LAYOUTS = (
    Layout("open_clip", open_clip.matches, open_clip_loading.load_text, open_clip_loading.load_image),
    Layout(
        "sentence-transformers (modules.json)",
        sentence_transformers.matches,
        sentence_transformers.load_text,
        sentence_transformers.load_image,
    ),
    *(_two_towers(family) for family in FAMILIES.values() if family.original == "transformers"),
    Layout("M-CLIP BERT", m_clip.is_bert, m_clip.load_bert, None),
    Layout("M-CLIP XLM-R", m_clip.is_xlm_roberta, m_clip.load_xlm_roberta, None),
)


def load_pair(model: str, text_model: str | None = None) -> CheckpointPair:
    """Loads a pair.

    Args:
        model: `demo`, a name on the hub, or a folder: a CLIP checkpoint.
        text_model: likewise, a text checkpoint. Without it `DEFAULT_TEXT_MODELS` decides, else the CLIP
            checkpoint's own text tower.

    Raises:
        ExportError: a checkpoint cannot be had, is of no supported layout, or the two do not pair.
    """
    model = short_name(model)
    text_model = short_name(text_model) if text_model else DEFAULT_TEXT_MODELS.get(model, model)
    image_folder = checkpoint_folder(model, DEMO_IMAGE)
    text_folder = checkpoint_folder(text_model, DEMO_TEXT)
    image = replace(
        load_image_checkpoint(image_folder, spec_name(model)), license=license_of(image_folder, model)
    )
    text = replace(
        load_text_checkpoint(text_folder, spec_name(text_model)), license=license_of(text_folder, text_model)
    )
    if image.embedding_dim != text.embedding_dim:
        raise ExportError(
            f"{model} gives {image.embedding_dim}-d embeddings and {text.name} {text.embedding_dim}-d "
            "ones: they are no pair; name a TEXT_MODEL trained for this image encoder"
        )
    return CheckpointPair(model_id_of(model), image, text)


def model_id_of(model: str) -> str:
    """`EncoderSpec.model_id` of a pair whose image checkpoint is given so."""
    # Letters, digits, dots and dashes: it becomes part of file names.
    return re.sub(r"[^\w.-]+", "-", spec_name(short_name(model)))


def load_image_checkpoint(folder: Path, name: str) -> ImageCheckpoint:
    """Loads a checkpoint's image side.

    Raises:
        ExportError: it has none, is of no supported layout, or damaged.
    """
    load = _layout(folder).load_image
    if load is None:
        raise no_image_encoder(folder)
    return load(folder, name)


def load_text_checkpoint(folder: Path, name: str) -> TextCheckpoint:
    """Loads a text checkpoint of any supported layout.

    Raises:
        ExportError: no supported layout, or damaged.
    """
    return _layout(folder).load_text(folder, name)


def _layout(folder: Path) -> Layout:
    # A configuration may stand further inside, and modules of sentence-transformers around what is refused.
    if (folder / "config.json").is_file() and (reason := REFUSED.get(model_type(folder) or "")):
        raise ExportError(f"{folder}: {reason}")
    for layout in LAYOUTS:
        if layout.matches(folder):
            return layout
    raise ExportError(
        f"{folder}: model_type {model_type(folder)!r} is no supported layout; supported are "
        f"{', '.join(layout.name for layout in LAYOUTS)}"
    )
