"""Chinese-CLIP: CLIP's vision transformer, and a BERT that is pooled at its first token."""

from __future__ import annotations

from transformers import ChineseCLIPModel

from export_scripts.encoders.bert import FirstPooledArchitecture, bert_tower
from export_scripts.encoders.clip import image_tower
from export_scripts.encoders.towers import Family, TextTower


def text_tower(model: ChineseCLIPModel) -> TextTower:
    """The BERT and its projection, which has no bias; no pooler is between them."""
    return bert_tower(model.text_model, model.text_projection, FirstPooledArchitecture)


FAMILY = Family(
    "Chinese-CLIP",
    ChineseCLIPModel,
    "chinese_clip",
    image_tower,
    text_tower,
    original="transformers",
    # `cn_clip.clip.tokenize`: all published ones, of 512 positions.
    most_tokens=52,
)
