"""A tiny checkpoint of every layout that can be exported: the table that fixtures and tests go through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from standins import checkpoints, families, open_clip

Write = Callable[[Path], Path]

# An image encoder and a text encoder of its own.
PAIRS: Mapping[str, Write] = {
    "clip": checkpoints.write_clip,
    "siglip": checkpoints.write_siglip,
    "siglip-2": partial(checkpoints.write_siglip, kind=checkpoints.SIGLIP_2),
    **{
        name: write
        for module in iter_modules(families.__path__)
        for name, write in import_module(f"{families.__name__}.{module.name}").PAIRS.items()
    },
    **{name: partial(open_clip.write_open_clip, kind=kind) for name, kind in open_clip.KINDS.items()},
}

# Texts only, for the pictures of `clip`.
TEXTS: Mapping[str, Write] = {
    "multilingual": checkpoints.write_multilingual,
    "m-clip-bert": checkpoints.write_m_clip_bert,
    "m-clip-xlm-r": checkpoints.write_m_clip_xlm_roberta,
}

ALL: Mapping[str, Write] = {**PAIRS, **TEXTS}
