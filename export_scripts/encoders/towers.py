"""What a family file says of an original: its two towers, or its text tower alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from clipserve.encoder_spec import Score
from clipserve.errors import ExportError
from clipserve.preprocessing import ImagePreprocessing, Padding, TextPreprocessing
from export_scripts.encoders.layers import ACTIVATIONS


@dataclass(frozen=True)
class Architecture:
    """What an encoder computes with its weights, beside what their names and shapes say.

    Encoders take their numbers from here and never from a checkpoint's configuration, and
    `export_scripts.identity` hashes every field: what an encoder depends on is in its identity, and what is
    only in the configuration is not.

    Attributes:
        heads: of attention.
        activation: one of `ACTIVATIONS`.
        norm_eps: of every layer norm.

    Raises:
        ExportError: another activation.
    """

    heads: int
    activation: str
    norm_eps: float

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ExportError(
                f"activation {self.activation!r} is not supported; supported are {', '.join(ACTIVATIONS)}"
            )

    def with_tokenizer(self, tokenizer: str, preprocessing: TextPreprocessing, folder: Path) -> Architecture:
        """The same, in the one form that equal encoders have whatever their configurations say.

        Args:
            tokenizer: text of its `tokenizer.json`.
            folder: of the checkpoint, for messages.

        Raises:
            ExportError: the tokenizer does not belong to this encoder.
        """
        return self


@dataclass(frozen=True)
class ImageTower:
    """An image encoder's original.

    Attributes:
        parts: the originals whose weights the encoder reads.
        embedding_dim: length of an embedding.
        size: height and width of its pictures, pixels.
        score: of the pair, see `EncoderSpec`.
        preprocessing: of the checkpoint's image processor, and of its folder for messages.
        build: makes the traceable encoder, float32, of its preprocessing and its last stage.
    """

    architecture: Architecture
    parts: tuple[nn.Module, ...]
    embedding_dim: int
    size: tuple[int, int]
    score: Score
    preprocessing: Callable[[Any, Path], ImagePreprocessing]
    build: Callable[[ImagePreprocessing, nn.Module], nn.Module]


@dataclass(frozen=True)
class TextTower:
    """A text encoder's original.

    Attributes:
        parts: the originals whose weights the encoder reads.
        embedding_dim: length of an embedding.
        vocabulary_size: rows of the embedding table.
        positions: the most tokens that there are positions for.
        build: makes the traceable encoder, float32, of its last stage.
        padding: see `TextPreprocessing`.
    """

    architecture: Architecture
    parts: tuple[nn.Module, ...]
    embedding_dim: int
    vocabulary_size: int
    positions: int
    build: Callable[[nn.Module], nn.Module]
    padding: Padding = "longest"


@dataclass(frozen=True)
class Family:
    """Models of an image and a text encoder.

    Attributes:
        name: as people call it.
        model: of transformers.
        model_type: in its configuration.
        image_tower, text_tower: of such a model, float32.
        original: the library whose forward pass, inputs included, an export is compared with.
        most_tokens: of a text that it was trained with, special ones included, where the model has more
            positions and its tokenizer does not say so.
    """

    name: str
    model: type[PreTrainedModel]
    model_type: str
    image_tower: Callable[[Any], ImageTower]
    text_tower: Callable[[Any], TextTower]
    original: Literal["sentence-transformers", "transformers"]
    most_tokens: int | None = None


def numbers_of(transformer: Any) -> dict[str, Any]:
    """What every architecture has, of a transformer whose configuration has CLIP's names."""
    return {
        "heads": transformer.config.num_attention_heads,
        "activation": transformer.config.hidden_act,
        "norm_eps": norm_eps(transformer),
    }


def norm_eps(transformer: nn.Module) -> float:
    """Of its layer norms: DistilBERT's is written in its code, the others' in their configurations."""
    found = {module.eps for module in transformer.modules() if isinstance(module, nn.LayerNorm)}
    if len(found) != 1:
        raise ExportError(f"layer norms of several eps {sorted(found)} are not supported; supported is one")
    return float(found.pop())
