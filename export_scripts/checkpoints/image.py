"""The image side that all layouts have: a tower, its processor, and the original to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import transformers
from PIL import Image

from clipserve.encoder_spec import FloatArray
from clipserve.errors import ExportError
from export_scripts.checkpoints.pair import ImageCheckpoint
from export_scripts.checkpoints.reading import in_our_words
from export_scripts.encoders.layers import last_stage
from export_scripts.encoders.towers import ImageTower
from export_scripts.identity import image_sha256, used_weights, weights_sha256


def pillow_processor(folder: Path) -> Any:
    """The checkpoint's image processor that resizes with Pillow, as CLIP was trained and published.

    Where torchvision can be imported, transformers 5 takes another one, whose pixels differ: by name, the
    original does not depend on what else is installed.
    """
    with in_our_words(folder, "transformers cannot load its image processor"):
        return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)


def image_checkpoint(
    name: str,
    tower: ImageTower,
    processor: Any,
    folder: Path,
    reference: Callable[[Sequence[Image.Image]], FloatArray],
) -> ImageCheckpoint:
    """The image side of a pair.

    Args:
        processor: see `pillow_processor`.
        folder: of the checkpoint, for messages.
        name, reference: see `ImageCheckpoint`.

    Raises:
        ExportError: the processor is of no supported kind, or does not belong to the tower.
    """
    preprocessing = tower.preprocessing(processor, folder)
    height, width = tower.size
    if (preprocessing.crop_height, preprocessing.crop_width) != tower.size:
        raise ExportError(
            f"{folder}: the processor crops to {preprocessing.crop_height} x "
            f"{preprocessing.crop_width}, the encoder wants {height} x {width}"
        )
    weights = weights_sha256(used_weights(*tower.parts))
    return ImageCheckpoint(
        name=name,
        embedding_dim=tower.embedding_dim,
        score=tower.score,
        weights_sha256=weights,
        checkpoint_sha256=image_sha256(tower.architecture, weights, preprocessing),
        preprocessing=preprocessing,
        reference=reference,
        build=lambda normalized: tower.build(preprocessing, last_stage(normalized)),
    )
