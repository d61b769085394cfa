"""SigLIP's image tower as open_clip has it: timm's, whose weights have other names than transformers'.

timm's activation differs: transformers, as the JAX that trained them, has the tanh form of GELU everywhere.
"""

from __future__ import annotations

import re

import transformers
from torch import Tensor

from export_scripts.checkpoints.open_clip.config import Config, check_timm
from export_scripts.checkpoints.open_clip.models import ImageModel
from export_scripts.checkpoints.open_clip.weights import TIMM, Renamed, Weights
from export_scripts.encoders import siglip

NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip_\d+")
HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}

# By timm 1.0 (`timm/models/vision_transformer.py`): size and patch. All others have GELU itself.
TANH = {("base", "32"), ("so400m", "16"), ("giantopt", "16")}


def image_model(config: Config, weights: Weights, size: str, patch: str) -> ImageModel:
    """SigLIP's vision transformer with its pooling head.

    Args:
        size, patch: of the name.

    Raises:
        ExportError: its settings are not supported, or its weights do not fit.
    """
    check_timm(config.vision, pool="map", proj="none")
    renamed = Renamed(weights.image, config.folder)
    positions = renamed.take("trunk.pos_embed")[0]
    renamed.state["embeddings.position_embedding.weight"] = positions
    renamed.move({"trunk.patch_embed.proj": "embeddings.patch_embedding", "trunk.norm": "post_layernorm"})
    renamed.move_pooling("trunk.attn_pool", "head")
    layers, mlp_width = renamed.move_layers(TIMM)
    vision = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=positions.shape[1],
            intermediate_size=mlp_width,
            num_hidden_layers=layers,
            num_attention_heads=HEADS[size],
            image_size=config.edge,
            patch_size=int(patch),
            hidden_act="gelu_pytorch_tanh" if (size, patch) in TANH else "gelu",
            layer_norm_eps=1e-6,
        )
    )
    renamed.load_into(vision)

    def original(pixel_values: Tensor) -> Tensor:
        embedding: Tensor = vision(pixel_values=pixel_values).pooler_output
        return embedding

    return ImageModel(siglip.image_tower_of(vision, weights.score), original)
