"""open_clip's image towers, as models of transformers: its own vision transformer, and timm's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import transformers
from torch import Tensor, nn

from clipserve.errors import ExportError
from export_scripts.checkpoints.open_clip import timm_pe_core, timm_siglip
from export_scripts.checkpoints.open_clip.config import PLAIN_BLOCKS, Config, activation, norm_eps
from export_scripts.checkpoints.open_clip.models import ImageModel
from export_scripts.checkpoints.open_clip.weights import OPEN_CLIP, Renamed, Weights
from export_scripts.encoders import clip
from export_scripts.encoders.layers import linear

# timm's towers, by their names, whose groups each takes.
TIMM: Mapping[re.Pattern[str], Callable[..., ImageModel]] = {
    timm_siglip.NAME: timm_siglip.image_model,
    timm_pe_core.NAME: timm_pe_core.image_model,
}

# Others that people ask for, by the beginning of their names: why not.
REFUSED = {
    "fastvit": "a MobileCLIP's image tower (FastViT) is a convolutional network, of which nothing is shared "
    "with the encoders here; take a ViT of DataComp",
    "vit_base_mci": "a MobileCLIP-B's image tower begins with convolutions; take a ViT of DataComp",
    "vit_pe_core_gigantic": "PE-Core-bigG has no class token, and counts the places of its patches from 0; "
    "take PE-Core-L-14-336",
}


def image_model(config: Config, weights: Weights) -> ImageModel:
    """A folder's image tower.

    Raises:
        ExportError: it is not supported, or its weights do not fit.
    """
    if config.vision.values.get("timm_model_name"):
        return _of_timm(config, weights)
    return _vision_transformer(config, weights)


def _of_timm(config: Config, weights: Weights) -> ImageModel:
    section = config.vision
    name = str(section.values["timm_model_name"])
    for pattern, tower in TIMM.items():
        if found := pattern.fullmatch(name):
            return tower(config, weights, *found.groups())
    if reason := next((why for begin, why in REFUSED.items() if name.startswith(begin)), None):
        raise ExportError(f"{section.path}: timm_model_name {name!r} is not supported: {reason}")
    raise section.refusal(
        "timm_model_name",
        "vit_base_patch16_siglip_224",
        "vit_pe_core_base_patch16_224",
        "another size of these",
    )


def _vision_transformer(config: Config, weights: Weights) -> ImageModel:
    section = config.vision
    found = section.read(
        {
            "image_size": 224,
            "patch_size": 16,
            "layers": 12,
            "width": 768,
            "head_width": 64,
            "act_kwargs": None,
            "norm_kwargs": None,
            "no_ln_pre": False,
            "pool_type": "tok",
            "final_ln_after_pool": False,
        },
        {**PLAIN_BLOCKS, "attentional_pool": False, "timm_model_name": None},
        # Those of the weights, of training, and of what is refused.
        (
            "mlp_ratio", "ls_init_value", "pos_embed_type", "patch_dropout", "attn_pooler_queries",
            "attn_pooler_heads",
        ),
    )  # fmt: skip
    if isinstance(found["layers"], list):
        raise ExportError(
            f"{section.path}: layers {found['layers']} are those of a ResNet, which is not supported; take "
            "a ViT of the same data"
        )
    mean = found["pool_type"] == "avg"
    # Of one token the norm is the same before and behind.
    if found["pool_type"] not in ("tok", "avg") or (mean and not found["final_ln_after_pool"]):
        raise ExportError(
            f"{section.path}: pool_type {found['pool_type']!r} with final_ln_after_pool "
            f"{found['final_ln_after_pool']} is not supported; supported are 'tok', and 'avg' with True"
        )
    edge = config.edge
    renamed = Renamed(weights.image, config.folder)
    renamed.state |= {
        "embeddings.patch_embedding.weight": renamed.take("conv1.weight"),
        "embeddings.class_embedding": renamed.take("class_embedding"),
        "embeddings.position_embedding.weight": renamed.take("positional_embedding"),
    }
    renamed.move({"ln_post": "post_layernorm"})
    if not found["no_ln_pre"]:
        renamed.move({"ln_pre": "pre_layrnorm"})
    _, mlp_width = renamed.move_layers(OPEN_CLIP)
    projection = linear(renamed.take("proj").T.contiguous())
    vision = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=found["width"],
            intermediate_size=mlp_width,
            num_hidden_layers=found["layers"],
            num_attention_heads=found["width"] // found["head_width"],
            image_size=edge,
            patch_size=found["patch_size"],
            hidden_act=activation(section, config.quick_gelu, found["act_kwargs"]),
            layer_norm_eps=norm_eps(section, found["norm_kwargs"]),
        )
    )
    if found["no_ln_pre"]:
        vision.set_submodule("pre_layrnorm", nn.Identity())
    renamed.load_into(vision)

    def original(pixel_values: Tensor) -> Tensor:
        found = vision(pixel_values=pixel_values)
        pooled = (
            vision.post_layernorm(found.last_hidden_state[:, 1:].mean(1)) if mean else found.pooler_output
        )
        embedding: Tensor = projection(pooled)
        return embedding

    return ImageModel(clip.image_tower_of(vision, projection, weights.score, mean=mean), original)
