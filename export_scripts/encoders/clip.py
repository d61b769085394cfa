"""CLIP: a vision transformer, and a causal text transformer pooled at its end token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel, CLIPVisionModel

from clipserve.encoder_spec import Score
from clipserve.errors import ExportError
from clipserve.preprocessing import ImagePreprocessing, TextPreprocessing
from clipserve.tokens import Tokenizer, largest_token_id
from export_scripts.encoders.layers import (
    Mlp,
    PatchProjection,
    PooledLayer,
    PreNormLayer,
    SelfAttention,
    WholeLayer,
    alike,
    check_pixels,
)
from export_scripts.encoders.processors import resample_name, squashed
from export_scripts.encoders.towers import Architecture, Family, ImageTower, TextTower, numbers_of


@dataclass(frozen=True)
class ImageArchitecture(Architecture):
    """CLIP's vision transformer; pooled at its first token.

    Attributes:
        patch_size: edge of a patch, pixels.
    """

    patch_size: int


@dataclass(frozen=True)
class MeanImageArchitecture(ImageArchitecture):
    """CLIPA's: the mean of its patches."""


@dataclass(frozen=True)
class ClipTextArchitecture(Architecture):
    """CLIP's text transformer: causal.

    Attributes:
        end_token: pooled at its first place; None pools at the first place of the highest token id.
    """

    end_token: int | None

    def with_tokenizer(
        self, tokenizer: str, preprocessing: TextPreprocessing, folder: Path
    ) -> ClipTextArchitecture:
        """Names the token that ends a text, and None only where that is not the vocabulary's highest.

        Where it is, pooling at the highest id is pooling there: published configurations of the same
        checkpoint name one or the other.

        Raises:
            ExportError: it is not pooled where the tokenizer ends a text. The original would give embeddings,
                and of all texts nearly the same: that of their first token.
        """
        ids = Tokenizer(tokenizer, preprocessing).tokenize("a").ids
        end = self.end_token
        pooled = ids.index(max(ids)) if end is None else ids.index(end) if end in ids else -1
        if pooled != len(ids) - 1 or (end is None and preprocessing.pad_token_id > ids[-1]):
            rule = "the highest token id" if end is None else f"token {end}"
            raise ExportError(
                f"{folder}: it pools at {rule} (eos_token_id of text_config), and its tokenizer ends a text "
                f"with token {ids[-1]} and pads with {preprocessing.pad_token_id}; the two are no pair"
            )
        ends_at_highest = largest_token_id(tokenizers.Tokenizer.from_str(tokenizer)) == ids[-1]
        return replace(self, end_token=ids[-1] if ends_at_highest else end)


def clip_text_architecture(text: CLIPTextModel, *, two_is_highest: bool) -> ClipTextArchitecture:
    """The numbers of a CLIP's text transformer.

    Args:
        two_is_highest: whether transformers pools at the highest token id where 2 is named as end token. The
            published configurations of CLIP do, and its end token has the highest.
    """
    config: Any = text.config
    end = None if two_is_highest and config.eos_token_id == 2 else config.eos_token_id
    return ClipTextArchitecture(**numbers_of(text), end_token=end)


def image_tower_of(
    vision: CLIPVisionModel, projection: nn.Linear, score: Score, *, mean: bool = False
) -> ImageTower:
    """A vision transformer and its projection; `score` is of the pair, and `mean` pools as CLIPA does."""
    # transformers types its submodules too loosely to check.
    embeddings: Any = vision.embeddings
    kind, edge = MeanImageArchitecture if mean else ImageArchitecture, embeddings.image_size
    architecture = kind(**numbers_of(vision), patch_size=embeddings.patch_size)
    return ImageTower(
        architecture=architecture,
        parts=(vision, projection),
        embedding_dim=projection.out_features,
        size=(edge, edge),
        score=score,
        preprocessing=image_preprocessing,
        build=lambda preprocessing, output: ImageEncoder(
            vision, projection, architecture, preprocessing, output
        ),
    )


def text_tower_of(text: CLIPTextModel, projection: nn.Linear, *, two_is_highest: bool = True) -> TextTower:
    """A text transformer and its projection; see `clip_text_architecture`."""
    embeddings: Any = text.embeddings
    architecture = clip_text_architecture(text, two_is_highest=two_is_highest)
    return TextTower(
        architecture=architecture,
        parts=(text, projection),
        embedding_dim=projection.out_features,
        vocabulary_size=embeddings.token_embedding.num_embeddings,
        positions=embeddings.position_embedding.num_embeddings,
        build=lambda output: ClipTextEncoder(text, projection, architecture, output),
    )


def image_tower(clip: Any) -> ImageTower:
    """The vision transformer and its projection, of a model with CLIP's names for them."""
    score = Score("softmax", float(clip.logit_scale.detach().double().exp()))
    return image_tower_of(clip.vision_model, clip.visual_projection, score)


def text_tower(clip: Any, *, two_is_highest: bool = True) -> TextTower:
    """The text transformer and its projection; see `clip_text_architecture`."""
    return text_tower_of(clip.text_model, clip.text_projection, two_is_highest=two_is_highest)


FAMILY = Family("CLIP", CLIPModel, "clip", image_tower, text_tower, original="sentence-transformers")


def image_preprocessing(processor: Any, folder: Path) -> ImagePreprocessing:
    """Resized by the shortest edge and cropped, or squashed; rescaled to [0, 1], and normalised.

    All of it or nothing. A processor that names a height and a width squashes, and crops nothing or what is
    of that size already.

    Raises:
        ExportError: the processor does something else.
    """
    if dict(processor.size).keys() == {"height", "width"}:
        return squashed(processor, folder, "CLIP")
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
    missing = [step for step in steps if not getattr(processor, step, False)]
    edge = processor.size.get("shortest_edge")
    crop = list(dict(processor.crop_size or {}).values())
    # Of a smaller picture the original crops beyond the edge, in black.
    resized = edge is not None and edge >= max(crop, default=0)
    if missing or not resized or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise ExportError(
            f"{folder}: preprocessing other than CLIP's own is not supported (missing: {missing}, size: "
            f"{dict(processor.size)}, crop: {crop}, rescale_factor: {processor.rescale_factor})"
        )
    return ImagePreprocessing(
        shortest_edge=edge,
        crop_height=processor.crop_size["height"],
        crop_width=processor.crop_size["width"],
        resample=resample_name(processor.resample, folder),
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
    )


class ImageEncoder(nn.Module):
    """CLIP's vision transformer with its projection.

    Args:
        vision, projection: the original; float32.
        architecture: see `image_tower_of`.
        preprocessing: its mean and std.
        output: last stage, `L2Normalized` or `Unnormalized`.
    """

    def __init__(
        self,
        # transformers types its submodules too loosely to check.
        vision: Any,
        projection: nn.Linear,
        architecture: ImageArchitecture,
        preprocessing: ImagePreprocessing,
        output: nn.Module,
    ):
        super().__init__()
        self.size = (preprocessing.crop_height, preprocessing.crop_width)
        self.wanted_pixels = preprocessing.wanted_pixels
        positions = vision.embeddings.position_embedding.weight.detach().double()  # [1 + patches, W]
        self.patches = PatchProjection(vision.embeddings.patch_embedding.weight, positions[1:], preprocessing)
        self.class_token = nn.Parameter(
            (vision.embeddings.class_embedding.detach().double() + positions[0]).float()[None, None]
        )
        self.norm_before = vision.pre_layrnorm
        layers = [pre_norm_layer(layer, architecture, causal=False) for layer in vision.encoder.layers]
        self.layers = nn.ModuleList(layers[:-1])
        mean = isinstance(architecture, MeanImageArchitecture)
        self.last_layer = WholeLayer(layers[-1]) if mean else PooledLayer(layers[-1])
        self.pool = _mean_of_patches if mean else _first
        self.norm_after = vision.post_layernorm
        self.projection = projection
        self.output = output

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embeds pictures.

        Args:
            pixel_values: uint8 `[N, 3, H, W]`, RGB, 0–255, resized and cropped.

        Returns:
            float32 `[N, D]`.

        Raises:
            ValueError: other pixels, which would give another vector without a word. A loaded trace raises
                its language's exception with the same message.
        """
        x = self.patches(check_pixels(pixel_values, torch.uint8, *self.size, self.wanted_pixels))
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)  # [N, 1 + hw, W]
        x = self.norm_before(x)
        for layer in self.layers:
            x = layer(x, None)
        x = self.last_layer(x, self.pool, None)
        embedding: Tensor = self.output(alike(self.projection, self.norm_after(x)))
        return embedding


class ClipTextEncoder(nn.Module):
    """CLIP's own text transformer with its projection, pooled at the end token.

    Args:
        text, projection: the original; float32.
        architecture: see `clip_text_architecture`.
        output: last stage, `L2Normalized` or `Unnormalized`.
    """

    def __init__(
        self, text: Any, projection: nn.Linear, architecture: ClipTextArchitecture, output: nn.Module
    ):
        super().__init__()
        self.tokens = text.embeddings.token_embedding
        self.positions = nn.Parameter(text.embeddings.position_embedding.weight.detach()[None])
        layers = [pre_norm_layer(layer, architecture, causal=True) for layer in text.encoder.layers]
        self.layers = nn.ModuleList(layers[:-1])
        self.last_layer = PooledLayer(layers[-1])
        self.norm_after = text.final_layer_norm
        self.projection = projection
        self.end_token = architecture.end_token
        self.output = output

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeds texts.

        Args:
            input_ids: int64 `[N, L]`, padded on the right.
            attention_mask: int64 `[N, L]`, 0 where padded. Nothing looks at it: attention is causal, so that
                no token up to the end token sees the padding after it.

        Returns:
            float32 `[N, D]`.
        """
        x = self.tokens(input_ids) + self.positions[:, : input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x, None)
        ends = input_ids if self.end_token is None else (input_ids == self.end_token).int()
        end = ends.argmax(1)  # [N]
        # Positions counted from 1, without a device constant: the end token sees what is not after it.
        seen = (input_ids >= 0).long().cumsum(1) <= end[:, None] + 1
        x = self.last_layer(x, partial(_take, positions=end), seen[:, None, None, :])
        embedding: Tensor = self.output(alike(self.projection, self.norm_after(x)))
        return embedding


def _first(x: Tensor) -> Tensor:
    """Row 0 of each: `[N, L, W]` to `[N, W]`."""
    return x[:, 0]


def _mean_of_patches(x: Tensor) -> Tensor:
    """The mean of all rows but 0 of each: `[N, L, W]` to `[N, W]`."""
    # In float32: a sum of many half-precision tokens loses digits.
    return x[:, 1:].float().mean(1).to(x.dtype)


def _take(x: Tensor, positions: Tensor) -> Tensor:
    """Row `positions[n]` of each `x[n]`: `[N, L, W]` to `[N, W]`. Indexing would need a device constant."""
    return x.gather(1, positions[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)


def pre_norm_layer(layer: Any, architecture: Architecture, *, causal: bool) -> PreNormLayer:
    """A layer of a transformer with CLIP's names for its parts."""
    attention = layer.self_attn
    return PreNormLayer(
        SelfAttention(
            attention.q_proj,
            attention.k_proj,
            attention.v_proj,
            attention.out_proj,
            architecture.heads,
            causal=causal,
        ),
        Mlp(layer.mlp.fc1, layer.mlp.fc2, architecture.activation),
        layer.layer_norm1,
        layer.layer_norm2,
    )
