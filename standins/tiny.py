"""A tiny checkpoint of every layout that can be exported: the table that fixtures and tests go through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from standins import checkpoints, open_clip
from standins.chinese_clip import write_chinese_clip
from standins.metaclip_2 import write_metaclip_2

Write = Callable[[Path], Path]

# An image encoder and a text encoder of its own.
PAIRS: Mapping[str, Write] = {
    "clip": checkpoints.write_clip,
    "siglip": checkpoints.write_siglip,
    "siglip-2": partial(checkpoints.write_siglip, kind=checkpoints.SIGLIP_2),
    "metaclip-2": write_metaclip_2,
    "chinese-clip": write_chinese_clip,
    **{name: partial(open_clip.write_open_clip, kind=kind) for name, kind in open_clip.KINDS.items()},
}

# Texts only, for the pictures of `clip`.
TEXTS: Mapping[str, Write] = {
    "multilingual": checkpoints.write_multilingual,
    "m-clip-bert": checkpoints.write_m_clip_bert,
    "m-clip-xlm-r": checkpoints.write_m_clip_xlm_roberta,
}

ALL: Mapping[str, Write] = {**PAIRS, **TEXTS}
