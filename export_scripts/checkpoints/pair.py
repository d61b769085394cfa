"""A checkpoint pair: what an export needs of an image and a text encoder of one embedding space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor, nn

from clipserve.encoder_spec import FloatArray, Score
from clipserve.preprocessing import ImagePreprocessing, TextPreprocessing
from export_scripts.identity import space_id

# Names under which OpenAI's checkpoints are published.
CLIP_B_32 = frozenset({"clip-vit-b-32", "clip-vit-base-patch32"})
CLIP_L_14 = frozenset({"clip-vit-l-14", "clip-vit-large-patch14"})

# The image checkpoints that published text encoders were trained for, as their model cards say; by the last
# part of their names in lower case. Equal size is not equal space.
TRAINED_FOR: dict[str, frozenset[str]] = {
    "clip-vit-b-32-multilingual-v1": CLIP_B_32,
    "m-bert-base-vit-b": CLIP_B_32,
    "xlm-roberta-large-vit-b-32": CLIP_B_32,
    "xlm-roberta-large-vit-l-14": CLIP_L_14,
    "labse-vit-l-14": CLIP_L_14,
    "xlm-roberta-large-vit-b-16plus": frozenset({"clip-vit-b-16-plus-240", "vit-b-16-plus-240"}),
}


@dataclass(frozen=True)
class ImageCheckpoint:
    """The image side of a pair.

    Attributes:
        name: as given by the user, or the folder's name.
        embedding_dim: length of an embedding.
        score: see `EncoderSpec`.
        weights_sha256: of the weights that the encoder reads.
        checkpoint_sha256: see `EncoderSpec`.
        reference: the eager original: pictures to un-normalised float32 `[N, D]`.
        build: makes the traceable encoder, float32; `normalized` as in the spec.
        license: see `EncoderSpec`.
    """

    name: str
    embedding_dim: int
    score: Score
    weights_sha256: str
    checkpoint_sha256: str
    preprocessing: ImagePreprocessing
    reference: Callable[[Sequence[Image.Image]], FloatArray]
    build: Callable[[bool], nn.Module]
    license: str | None = None


@dataclass(frozen=True)
class TextCheckpoint:
    """The text side of a pair.

    Attributes:
        name: as given by the user, or the folder's name.
        embedding_dim: length of an embedding.
        weights_sha256: of the weights that the encoder reads.
        checkpoint_sha256: see `EncoderSpec`.
        image_weights_sha256: `ImageCheckpoint.weights_sha256` of the image encoder in the same checkpoint;
            None where it has none.
        tokenizer: text of its `tokenizer.json`.
        config: the transformer's configuration, for programs that keep it beside the encoder; no vector
            depends on it.
        reference: the eager original on tokens: `input_ids`, `attention_mask` to un-normalised `[N, D]`.
        reference_encode: the eager original on texts, with the checkpoint's own tokenizer.
        build: makes the traceable encoder, float32; `normalized` as in the spec.
        license: see `EncoderSpec`.
    """

    name: str
    embedding_dim: int
    weights_sha256: str
    checkpoint_sha256: str
    image_weights_sha256: str | None
    preprocessing: TextPreprocessing
    tokenizer: str
    config: Mapping[str, Any]
    reference: Callable[[Tensor, Tensor], FloatArray]
    reference_encode: Callable[[Sequence[str]], FloatArray]
    build: Callable[[bool], nn.Module]
    license: str | None = None


@dataclass(frozen=True)
class CheckpointPair:
    """An image and a text encoder of one embedding space."""

    model_id: str
    image: ImageCheckpoint
    text: TextCheckpoint

    @property
    def space_id(self) -> str:
        """See `EncoderSpec.space_id`."""
        return space_id(self.image.checkpoint_sha256, self.text.checkpoint_sha256)

    @property
    def doubt(self) -> str | None:
        """One sentence where the two, though of one size, are known to be trained for others; else None.

        A CLIP's text tower belongs to its own image encoder, which is compared by its weights. Others are
        known by name only.
        """
        trained_for = TRAINED_FOR.get(last_part(self.text.name))
        if self.text.image_weights_sha256 not in (None, self.image.weights_sha256):
            reason = f"was trained beside an image encoder of other weights than {self.image.name}"
        elif trained_for is not None and last_part(self.image.name) not in trained_for:
            reason = (
                f"was trained for {' or '.join(sorted(trained_for))}, and the image encoder is called "
                f"{self.image.name}"
            )
        else:
            return None
        return (
            f"{self.text.name} {reason}: equal size is not equal space, and similarities may mean nothing; "
            "name the TEXT_MODEL of this image encoder"
        )


def last_part(name: str) -> str:
    """Of a name on the hub, in lower case."""
    return name.rpartition("/")[2].lower()
