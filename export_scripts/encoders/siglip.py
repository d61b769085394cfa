"""SigLIP at a fixed resolution: pictures pooled by attention, and texts whose padding is seen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipModel, SiglipTextModel, SiglipVisionModel

from clipserve.encoder_spec import Score
from clipserve.errors import ExportError
from clipserve.preprocessing import ImagePreprocessing
from export_scripts.encoders.clip import pre_norm_layer
from export_scripts.encoders.layers import (
    Mlp,
    PatchProjection,
    PooledLayer,
    alike,
    check_length,
    check_pixels,
    linear,
)
from export_scripts.encoders.processors import squashed
from export_scripts.encoders.towers import Architecture, Family, ImageTower, TextTower, numbers_of


@dataclass(frozen=True)
class SiglipImageArchitecture(Architecture):
    """SigLIP's vision transformer; pooled by attention of one learned query.

    Attributes:
        patch_size: edge of a patch, pixels.
    """

    patch_size: int


@dataclass(frozen=True)
class SiglipTextArchitecture(Architecture):
    """SigLIP's text transformer: every token sees every other, padding too; pooled at the last position."""


def image_tower_of(vision: SiglipVisionModel, score: Score) -> ImageTower:
    """A vision transformer with its pooling head; `score` is of the pair.

    Raises:
        ExportError: it has no such head.
    """
    # transformers types its submodules too loosely to check.
    parts: Any = vision
    if not parts.use_head:
        raise ExportError("vision_use_head false is not supported; supported is a pooling head")
    architecture = SiglipImageArchitecture(**numbers_of(vision), patch_size=parts.embeddings.patch_size)
    edge = parts.embeddings.image_size
    return ImageTower(
        architecture=architecture,
        parts=(vision,),
        embedding_dim=parts.post_layernorm.normalized_shape[0],
        size=(edge, edge),
        score=score,
        preprocessing=partial(squashed, name="SigLIP"),
        build=lambda preprocessing, output: SiglipImageEncoder(vision, architecture, preprocessing, output),
    )


def text_tower_of(text: SiglipTextModel) -> TextTower:
    """A text transformer with its head."""
    parts: Any = text
    architecture = SiglipTextArchitecture(**numbers_of(text))
    return TextTower(
        architecture=architecture,
        parts=(text,),
        embedding_dim=parts.head.out_features,
        vocabulary_size=parts.embeddings.token_embedding.num_embeddings,
        positions=parts.embeddings.position_embedding.num_embeddings,
        build=lambda output: SiglipTextEncoder(text, architecture, output),
        padding="context_length",
    )


def image_tower(siglip: SiglipModel) -> ImageTower:
    """The vision transformer with its pooling head; see `image_tower_of`."""
    scale, bias = (
        float(value.double())
        for value in (siglip.logit_scale.detach().double().exp(), siglip.logit_bias.detach())
    )
    return image_tower_of(siglip.vision_model, Score("sigmoid", scale, bias))


def text_tower(siglip: SiglipModel) -> TextTower:
    """The text transformer with its head."""
    return text_tower_of(siglip.text_model)


FAMILY = Family("SigLIP", SiglipModel, "siglip", image_tower, text_tower, original="transformers")


class SiglipImageEncoder(nn.Module):
    """SigLIP's vision transformer with its pooling head.

    Args:
        vision: the original; float32.
        architecture: see `image_tower`.
        preprocessing: its mean and std.
        output: last stage, `L2Normalized` or `Unnormalized`.
    """

    def __init__(
        self,
        vision: Any,
        architecture: SiglipImageArchitecture,
        preprocessing: ImagePreprocessing,
        output: nn.Module,
    ):
        super().__init__()
        self.size = (preprocessing.crop_height, preprocessing.crop_width)
        self.wanted_pixels = preprocessing.wanted_pixels
        embedding = vision.embeddings.patch_embedding
        self.patches = PatchProjection(
            embedding.weight,
            vision.embeddings.position_embedding.weight.detach().double() + embedding.bias.detach().double(),
            preprocessing,
        )
        self.layers = nn.ModuleList(
            pre_norm_layer(layer, architecture, causal=False) for layer in vision.encoder.layers
        )
        self.norm_after = vision.post_layernorm
        self.pool = AttentionPooling(vision.head, architecture.heads, architecture.activation)
        self.output = output

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embeds pictures.

        Args:
            pixel_values: uint8 `[N, 3, H, W]`, RGB, 0-255, resized.

        Returns:
            float32 `[N, D]`.

        Raises:
            ValueError: other pixels, see `check_pixels`.
        """
        x = self.patches(check_pixels(pixel_values, torch.uint8, *self.size, self.wanted_pixels))
        for layer in self.layers:
            x = layer(x, None)
        embedding: Tensor = self.output(self.pool(self.norm_after(x)))
        return embedding


class AttentionPooling(nn.Module):
    """Attention of one learned query over all patches, and an MLP beside it.

    Args:
        head: the original, a `SiglipMultiheadAttentionPoolingHead`; float32.
        heads: of the attention.
        activation: see `Architecture`.
    """

    def __init__(self, head: Any, heads: int, activation: str):
        super().__init__()
        attention = head.attention
        width = attention.embed_dim
        weight, bias = attention.in_proj_weight.detach(), attention.in_proj_bias.detach()
        self.heads = heads
        # It asks the same of every picture.
        query = F.linear(head.probe.detach()[0], weight[:width], bias[:width])  # [1, W]
        self.query = nn.Parameter(query.view(1, heads, 1, width // heads))
        self.key_value = linear(weight[width:], bias[width:])
        self.out = linear(attention.out_proj.weight, attention.out_proj.bias)
        self.norm = head.layernorm
        self.mlp = Mlp(head.mlp.fc1, head.mlp.fc2, activation)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, L, W]` to `[N, W]`."""
        # [N, L, 2W] -> twice [N, H, L, W/H]
        k, v = self.key_value(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(self.query.expand(x.shape[0], -1, -1, -1), k, v)
        x = alike(self.out, y.flatten(1))
        return x + alike(self.mlp, self.norm(x))


class SiglipTextEncoder(nn.Module):
    """SigLIP's text transformer with its head, pooled at the last position.

    Args:
        text: the original; float32.
        architecture: see `text_tower`.
        output: last stage, `L2Normalized` or `Unnormalized`.
    """

    def __init__(self, text: Any, architecture: SiglipTextArchitecture, output: nn.Module):
        super().__init__()
        self.tokens = text.embeddings.token_embedding
        self.positions = nn.Parameter(text.embeddings.position_embedding.weight.detach()[None])
        self.length = self.positions.shape[1]
        self.wanted_tokens = (
            f"input_ids must be int64 [N, {self.length}], each text padded to {self.length} tokens; the "
            "padding is seen"
        )
        layers = [pre_norm_layer(layer, architecture, causal=False) for layer in text.encoder.layers]
        self.layers = nn.ModuleList(layers[:-1])
        self.last_layer = PooledLayer(layers[-1])
        self.norm_after = text.final_layer_norm
        self.head = text.head
        self.output = output

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeds texts.

        Args:
            input_ids: int64 `[N, context length]`, padded on the right.
            attention_mask: int64, of the same shape. Nothing looks at it: padding is seen, as in training.

        Returns:
            float32 `[N, D]`.

        Raises:
            ValueError: texts of another length. One of a single token would be taken for 64 equal ones.
        """
        x = self.tokens(check_length(input_ids, self.length, self.wanted_tokens)) + self.positions
        for layer in self.layers:
            x = layer(x, None)
        x = self.last_layer(x, _last, None)
        embedding: Tensor = self.output(alike(self.head, self.norm_after(x)))
        return embedding


def _last(x: Tensor) -> Tensor:
    """The last row of each: `[N, L, W]` to `[N, W]`."""
    return x[:, -1]
