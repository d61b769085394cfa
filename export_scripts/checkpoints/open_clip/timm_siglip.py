"""SigLIP's image tower as open_clip has it: timm's, whose weights have other names than transformers'.

timm's activation differs: transformers, as the JAX that trained them, has the tanh form of GELU everywhere.
"""

from __future__ import annotations

import re

import torch
import transformers
from torch import Tensor

from clipserve.errors import ExportError
from export_scripts.checkpoints.open_clip.config import Config
from export_scripts.checkpoints.open_clip.models import ImageModel
from export_scripts.checkpoints.open_clip.weights import TIMM, Renamed, Weights
from export_scripts.encoders import siglip

NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip_\d+")
HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}

# By timm 1.0 (`timm/models/vision_transformer.py`): size and patch. All others have GELU itself.
TANH = {("base", "32"), ("so400m", "16"), ("giantopt", "16")}

# Other towers of timm's that people ask for, by the beginning of their names: why not.
REFUSED = {
    "fastvit": "a MobileCLIP's image tower (FastViT) is a convolutional network, of which nothing is shared "
    "with the encoders here; take a ViT of DataComp",
    "vit_pe": "PE-Core's image tower turns its queries and keys by position (RoPE), which no encoder here "
    "does; take a ViT of DFN or a SigLIP 2",
}


def timm_siglip(config: Config, weights: Weights) -> ImageModel:
    """SigLIP's vision transformer with its pooling head.

    Raises:
        ExportError: it is another model of timm's, or its weights do not fit.
    """
    section = config.vision
    name = str(section.values["timm_model_name"])
    if reason := next((why for begin, why in REFUSED.items() if name.startswith(begin)), None):
        raise ExportError(f"{section.path}: timm_model_name {name!r} is not supported: {reason}")
    known = NAME.fullmatch(name)
    if known is None:
        raise section.refusal("timm_model_name", "vit_base_patch16_siglip_224", "another size of SigLIP's")
    said = section.read(
        {"timm_pool": "avg", "timm_proj": "linear"},
        {},
        (
            "timm_model_name", "image_size", "timm_model_pretrained", "timm_drop", "timm_drop_path",
            "timm_proj_bias", "patch_dropout",
        ),
    )  # fmt: skip
    for setting, supported in (("timm_pool", "map"), ("timm_proj", "none")):
        if said[setting] != supported:
            raise section.refusal(setting, supported)
    size, patch = known.groups()
    renamed = Renamed(weights.image, config.folder)
    positions = renamed.take("trunk.pos_embed")[0]
    renamed.state |= {
        "embeddings.position_embedding.weight": positions,
        "head.probe": renamed.take("trunk.attn_pool.latent"),
    }
    for part in ("weight", "bias"):
        query, key_value = (renamed.take(f"trunk.attn_pool.{which}.{part}") for which in ("q", "kv"))
        renamed.state[f"head.attention.in_proj_{part}"] = torch.cat([query, key_value])
    renamed.move(
        {
            "trunk.patch_embed.proj": "embeddings.patch_embedding",
            "trunk.norm": "post_layernorm",
            "trunk.attn_pool.proj": "head.attention.out_proj",
            "trunk.attn_pool.norm": "head.layernorm",
            "trunk.attn_pool.mlp.fc1": "head.mlp.fc1",
            "trunk.attn_pool.mlp.fc2": "head.mlp.fc2",
        }
    )
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
