"""MetaCLIP 2 worldwide: CLIP's two towers with a multilingual vocabulary.

A text is pooled at the first token that its configuration names as end token, and nowhere else. In XLM-V's
vocabulary that is 2, which in a CLIP's configuration means the highest token id.
"""

from __future__ import annotations

from functools import partial

from transformers import MetaClip2Model

from export_scripts.encoders.clip import image_tower, text_tower
from export_scripts.encoders.towers import Family

FAMILY = Family(
    "MetaCLIP 2",
    MetaClip2Model,
    "metaclip_2",
    image_tower,
    partial(text_tower, two_is_highest=False),
    original="transformers",
)
