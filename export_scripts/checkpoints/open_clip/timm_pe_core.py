"""PE-Core's image tower as open_clip has it: timm's, a Llama 4's vision transformer with SigLIP's pooling."""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from export_scripts.checkpoints.open_clip.config import Config, check_timm
from export_scripts.checkpoints.open_clip.models import ImageModel
from export_scripts.checkpoints.open_clip.weights import TIMM, ModelNames, Renamed, Weights
from export_scripts.encoders import pe_core
from export_scripts.encoders.towers import norm_eps

NAME = re.compile(r"vit_pe_core_(tiny|small|base|large)_patch(\d+)_\d+")

# By timm 1.0 (`timm/models/eva.py`).
HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16}
POOLING_HEADS, POOLING_MLP = 8, 4
NORM_EPS = 1e-5  # and of a Llama 4's norms, whose code has it
THETA = 10000.0

LLAMA_4 = ModelNames("vision.model.layers", "input_layernorm", "post_attention_layernorm", "o_proj")


class _Original(nn.Module):
    """transformers' modules, of which a Llama 4 itself pools nothing."""

    def __init__(
        self,
        vision: transformers.Llama4VisionModel,
        head: SiglipMultiheadAttentionPoolingHead,
        projection: nn.Linear,
    ):
        super().__init__()
        self.vision, self.head, self.projection = vision, head, projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels, float32 `[N, 3, H, W]`, to embeddings `[N, D]`."""
        # transformers types its submodules too loosely to check.
        vision: Any = self.vision
        x = vision.patch_embedding(pixel_values)
        x = torch.cat([x, vision.class_embedding.expand(x.shape[0], 1, -1)], dim=1)
        x = vision.layernorm_pre(x + vision.positional_embedding_vlm)
        x = vision.model(x, freqs_ci=vision.rotary_embedding(x)).last_hidden_state
        embedding: Tensor = self.projection(self.head(vision.layernorm_post(x)))
        return embedding


def image_model(config: Config, weights: Weights, size: str, patch: str) -> ImageModel:
    """PE-Core's vision transformer with its pooling head and projection.

    Args:
        size, patch: of the name.

    Raises:
        ExportError: its settings are not supported, or its weights do not fit.
    """
    check_timm(config.vision, pool="map", proj=None)
    renamed = Renamed(weights.image, config.folder)
    positions = renamed.take("trunk.pos_embed")[0]  # [1 + patches, W]
    renamed.state |= {
        "vision.patch_embedding.linear.weight": renamed.take("trunk.patch_embed.proj.weight").flatten(1),
        "vision.class_embedding": renamed.take("trunk.cls_token").flatten(),
        # A Llama 4's class token is the last.
        "vision.positional_embedding_vlm": positions.roll(-1, 0),
    }
    renamed.move(
        {
            "trunk.norm_pre": "vision.layernorm_pre",
            "trunk.norm": "vision.layernorm_post",
            "trunk.head": "projection",
        }
    )
    renamed.move_pooling("trunk.attn_pool", "head")
    layers, mlp_width = renamed.move_layers(TIMM, LLAMA_4)
    width, dimension = positions.shape[1], config.embedding_dim
    vision = transformers.Llama4VisionModel(
        transformers.Llama4VisionConfig(
            hidden_size=width,
            intermediate_size=mlp_width,
            num_hidden_layers=layers,
            num_attention_heads=HEADS[size],
            image_size=config.edge,
            patch_size=int(patch),
            rope_parameters={"rope_type": "default", "rope_theta": THETA},
            # Of what is thrown away.
            projector_input_dim=1,
            projector_output_dim=1,
        )
    )
    vision.set_submodule("vision_adapter", nn.Identity())
    head = SiglipMultiheadAttentionPoolingHead(
        transformers.SiglipVisionConfig(
            hidden_size=width,
            intermediate_size=POOLING_MLP * width,
            num_attention_heads=POOLING_HEADS,
            hidden_act="gelu",
            layer_norm_eps=NORM_EPS,
        )
    )
    original = _Original(vision, head, nn.Linear(width, dimension))
    renamed.load_into(original)
    architecture = pe_core.PeCoreImageArchitecture(
        heads=HEADS[size],
        activation="gelu",
        norm_eps=norm_eps(original),
        patch_size=int(patch),
        pooling_heads=POOLING_HEADS,
        theta=THETA,
    )
    tower = pe_core.image_tower_of(vision, head, original.projection, architecture, weights.score)
    return ImageModel(tower, original)
