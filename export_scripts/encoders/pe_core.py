"""Perception Encoder (PE-Core): a vision transformer whose queries and keys are turned by place.

Bolya et al. 2025, https://arxiv.org/abs/2504.13181; the turning is RoFormer's (Su et al. 2021,
https://arxiv.org/abs/2104.09864) on two axes. Its texts are a CLIP's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipserve.encoder_spec import Score
from clipserve.preprocessing import ImagePreprocessing
from export_scripts.encoders.layers import (
    Mlp,
    PatchProjection,
    PreNormLayer,
    SelfAttention,
    alike,
    check_pixels,
    linear,
)
from export_scripts.encoders.processors import squashed
from export_scripts.encoders.siglip import AttentionPooling
from export_scripts.encoders.towers import Architecture, ImageTower


@dataclass(frozen=True)
class PeCoreImageArchitecture(Architecture):
    """PE-Core's vision transformer; pooled by attention of one learned query.

    Attributes:
        patch_size: edge of a patch, pixels.
        pooling_heads: of the attention that pools.
        theta: base of the frequencies of turning.
    """

    patch_size: int
    pooling_heads: int
    theta: float


def image_tower_of(
    # Not typed, for its type would be loaded with every other encoder.
    vision: Any,
    head: nn.Module,
    projection: nn.Linear,
    architecture: PeCoreImageArchitecture,
    score: Score,
) -> ImageTower:
    """A Llama 4's vision transformer, a SigLIP's pooling head, and a projection; `score` is of the pair."""
    edge = vision.image_size
    return ImageTower(
        architecture=architecture,
        parts=(vision, head, projection),
        embedding_dim=projection.out_features,
        size=(edge, edge),
        score=score,
        preprocessing=partial(squashed, name="PE-Core"),
        build=lambda preprocessing, output: PeCoreImageEncoder(
            vision, head, projection, architecture, preprocessing, output
        ),
    )


class PeCoreImageEncoder(nn.Module):
    """PE-Core's vision transformer with its pooling head and projection.

    Args:
        vision, head, projection: the original; float32. `vision` has the class token behind the patches.
        architecture: see `PeCoreImageArchitecture`.
        preprocessing: its mean and std.
        output: last stage, `L2Normalized` or `Unnormalized`.
    """

    def __init__(
        self,
        vision: Any,
        head: Any,
        projection: nn.Linear,
        architecture: PeCoreImageArchitecture,
        preprocessing: ImagePreprocessing,
        output: nn.Module,
    ):
        super().__init__()
        self.size = (preprocessing.crop_height, preprocessing.crop_width)
        self.wanted_pixels = preprocessing.wanted_pixels
        positions = vision.positional_embedding_vlm.detach().double()  # [patches + 1, W]
        patch = architecture.patch_size
        weight = vision.patch_embedding.linear.weight.unflatten(1, (3, patch, patch))
        self.patches = PatchProjection(weight, positions[:-1], preprocessing)
        self.class_token = nn.Parameter(
            (vision.class_embedding.detach().double() + positions[-1]).float()[None, None]
        )
        self.norm_before = vision.layernorm_pre
        head_width = positions.shape[1] // architecture.heads
        angles = patch_angles(self.size[0] // patch, self.size[1] // patch, head_width, architecture.theta)
        # [L, head width], of all layers; the second number of a pair is turned into the first the other way.
        cosines = nn.Parameter(angles.cos().repeat(1, 2).float())
        sines = nn.Parameter(torch.cat([-angles.sin(), angles.sin()], dim=1).float())
        self.layers = nn.ModuleList(
            _layer(layer, architecture, cosines, sines) for layer in vision.model.layers
        )
        self.norm_after = vision.layernorm_post
        self.pool = AttentionPooling(head, architecture.pooling_heads, architecture.activation)
        self.projection = projection
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
        x = torch.cat([x, self.class_token.expand(x.shape[0], -1, -1)], dim=1)  # [N, hw + 1, W]
        x = self.norm_before(x)
        for layer in self.layers:
            x = layer(x, None)
        embedding: Tensor = self.output(alike(self.projection, self.pool(self.norm_after(x))))
        return embedding


def patch_angles(height: int, width: int, head_width: int, theta: float) -> Tensor:
    """By how much queries and keys of each patch are turned, in radians, and not at all of the class token.

    The first half of a head's pairs of numbers is turned by the column, the second by the row, both counted
    from 1; the j-th pair of a half by `theta^(-j / pairs in a half)` for each step.

    Returns:
        float64 `[height * width + 1, head_width / 2]`, rows of the picture one after the other.
    """
    half = head_width // 4
    frequencies = theta ** -(torch.arange(half, dtype=torch.float64) / half)
    row = torch.arange(1, height + 1, dtype=torch.float64).repeat_interleave(width)
    column = torch.arange(1, width + 1, dtype=torch.float64).repeat(height)
    angles = torch.cat([column[:, None] * frequencies, row[:, None] * frequencies], dim=1)
    return F.pad(angles, (0, 0, 0, 1))


class TurnedAttention(SelfAttention):
    """Self-attention whose queries and keys are turned by place.

    The original turns numbers 2i and 2i + 1 of a head together. Here they lie half a head apart, which the
    weights' rows see to, since a product of queries and keys asks not in which order their numbers come.

    Args:
        query, key, value, out, heads: see `SelfAttention`; of the original.
        cosines, sines: of each place's angles, float32 `[L, W/H]`; the first half of the sines is negative.
    """

    def __init__(
        self,
        query: nn.Linear,
        key: nn.Linear,
        value: nn.Linear,
        out: nn.Linear,
        heads: int,
        cosines: nn.Parameter,
        sines: nn.Parameter,
    ):
        super().__init__(_apart(query, heads), _apart(key, heads), value, out, heads)
        self.cosines, self.sines = cosines, sines

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` `[N, L, W]`, each row at its place; `mask` is None, for nothing is padded."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3, N, H, L, W/H]
        qk, v = qkv[:2], qkv[2]
        first, second = qk.unflatten(-1, (2, -1)).unbind(-2)
        q, k = (qk * self.cosines + torch.cat([second, first], dim=-1) * self.sines).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        attended: Tensor = self.out(y.transpose(1, 2).flatten(-2))
        return attended


def _apart(layer: nn.Linear, heads: int) -> nn.Linear:
    """The same numbers of each head, but first those of even places, then those of odd ones."""

    def sorted_rows(rows: Tensor) -> Tensor:
        by_head: Tensor = rows.detach().unflatten(0, (heads, -1, 2))
        return by_head.transpose(1, 2).flatten(0, 2)

    return linear(sorted_rows(layer.weight), sorted_rows(layer.bias))


def _layer(
    layer: Any, architecture: PeCoreImageArchitecture, cosines: nn.Parameter, sines: nn.Parameter
) -> PreNormLayer:
    attention = layer.self_attn
    return PreNormLayer(
        TurnedAttention(
            attention.q_proj,
            attention.k_proj,
            attention.v_proj,
            attention.o_proj,
            architecture.heads,
            cosines,
            sines,
        ),
        Mlp(layer.mlp.fc1, layer.mlp.fc2, architecture.activation),
        layer.input_layernorm,
        layer.post_attention_layernorm,
    )
