"""Every layout of checkpoints as a tiny stand-in: what the tests' table of layouts is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from standins import checkpoints, open_clip


@dataclass(frozen=True)
class Layout:
    """A stand-in.

    Attributes:
        write: into a new folder.
        image: whether it has an image encoder.
    """

    write: Callable[[Path], Path]
    image: bool


LAYOUTS = {
    "clip": Layout(checkpoints.write_clip, image=True),
    "multilingual": Layout(checkpoints.write_multilingual, image=False),
    "m-clip-bert": Layout(checkpoints.write_m_clip_bert, image=False),
    "m-clip-xlm-r": Layout(checkpoints.write_m_clip_xlm_roberta, image=False),
    "siglip": Layout(checkpoints.write_siglip, image=True),
    "siglip-2": Layout(partial(checkpoints.write_siglip, kind=checkpoints.SIGLIP_2), image=True),
    **{
        name: Layout(partial(open_clip.write_open_clip, kind=kind), image=True)
        for name, kind in open_clip.KINDS.items()
    },
}
