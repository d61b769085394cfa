"""What a tower of open_clip's becomes: the tower of a model of transformers, and how that is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from export_scripts.encoders.towers import ImageTower, TextTower


@dataclass(frozen=True)
class ImageModel:
    """An image tower.

    Attributes:
        original: normalised pixels, float32 `[N, 3, H, W]`, to embeddings `[N, D]`.
    """

    tower: ImageTower
    original: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TextModel:
    """A text tower.

    Attributes:
        original: `input_ids` and `attention_mask`, int64 `[N, L]`, to embeddings `[N, D]`.
        context_length: the most tokens of a text.
    """

    tower: TextTower
    original: Callable[[Tensor, Tensor], Tensor]
    context_length: int
