"""The names and shapes of the weights in open_clip's layout, of each tower that it can have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers

# By a weight's name.
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Tower:
    """Sizes of one transformer."""

    width: int
    layers: int
    mlp_ratio: float = 4.0


def layers(prefix: str, tower: Tower, names: Mapping[str, str], layer_scale: bool) -> Shapes:
    """The weights of a transformer's layers: `names` of what is in each."""
    width, mlp = tower.width, int(tower.width * tower.mlp_ratio)
    inside = {
        f"{names['norm1']}.weight": (width,), f"{names['norm1']}.bias": (width,),
        names["qkv_weight"]: (3 * width, width), names["qkv_bias"]: (3 * width,),
        f"{names['out']}.weight": (width, width), f"{names['out']}.bias": (width,),
        f"{names['norm2']}.weight": (width,), f"{names['norm2']}.bias": (width,),
        f"{names['up']}.weight": (mlp, width), f"{names['up']}.bias": (mlp,),
        f"{names['down']}.weight": (width, mlp), f"{names['down']}.bias": (width,),
    }  # fmt: skip
    if layer_scale:
        inside |= {"ls_1.gamma": (width,), "ls_2.gamma": (width,)}
    return {
        f"{prefix}.{number}.{name}": shape for number in range(tower.layers) for name, shape in inside.items()
    }


OWN_NAMES = {
    "norm1": "ln_1", "qkv_weight": "attn.in_proj_weight", "qkv_bias": "attn.in_proj_bias",
    "out": "attn.out_proj", "norm2": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj",
}  # fmt: skip


def own_image(config: Mapping[str, Any]) -> Shapes:
    """open_clip's vision transformer."""
    vision = config["vision_cfg"]
    width, patch = vision["width"], vision["patch_size"]
    tower = Tower(width, vision["layers"])
    norms = ("ln_post",) if vision.get("no_ln_pre") else ("ln_pre", "ln_post")
    return {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((vision["image_size"] // patch) ** 2 + 1, width),
        "visual.proj": (width, config["embed_dim"]),
        "visual.conv1.weight": (width, 3, patch, patch),
        **{f"visual.{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")},
        **layers("visual.transformer.resblocks", tower, OWN_NAMES, "ls_init_value" in vision),
    }


def own_text(config: Mapping[str, Any]) -> Shapes:
    """open_clip's text transformer; its names begin with `text.` where there is `custom_text`."""
    text, dimension = config["text_cfg"], config["embed_dim"]
    width = text["width"]
    prefix = "text." if config.get("custom_text") else ""
    biased = {
        f"{prefix}text_projection.weight": (dimension, width),
        f"{prefix}text_projection.bias": (dimension,),
    }
    return {
        f"{prefix}positional_embedding": (text["context_length"], width),
        **(biased if text.get("proj_bias") else {f"{prefix}text_projection": (width, dimension)}),
        f"{prefix}token_embedding.weight": (text["vocab_size"], width),
        **{f"{prefix}ln_final.{part}": (width,) for part in ("weight", "bias")},
        **layers(
            f"{prefix}transformer.resblocks",
            Tower(width, text["layers"], text.get("mlp_ratio", 4.0)),
            OWN_NAMES,
            "ls_init_value" in text,
        ),
    }


TIMM_NAMES = {
    "norm1": "norm1", "qkv_weight": "attn.qkv.weight", "qkv_bias": "attn.qkv.bias", "out": "attn.proj",
    "norm2": "norm2", "up": "mlp.fc1", "down": "mlp.fc2",
}  # fmt: skip


def timm_image(width: int, patches: int, layer_count: int, patch: int, own: Shapes) -> Shapes:
    """Timm's vision transformers with attention pooling; `own` is what one of them has beside the others."""
    pooling = {
        "latent": (1, 1, width), "q.weight": (width, width), "q.bias": (width,),
        "kv.weight": (2 * width, width), "kv.bias": (2 * width,), "proj.weight": (width, width),
        "proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,),
        "mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,),
    }  # fmt: skip
    inside: Shapes = {
        "pos_embed": (1, patches, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        **own,
        "norm.weight": (width,),
        "norm.bias": (width,),
        **{f"attn_pool.{name}": shape for name, shape in pooling.items()},
        **layers("blocks", Tower(width, layer_count), TIMM_NAMES, layer_scale=False),
    }
    return {f"visual.trunk.{name}": shape for name, shape in inside.items()}


def timm_siglip_image(config: Mapping[str, Any], *, layer_count: int, patch: int = 16) -> Shapes:
    """SigLIP's, as wide as an embedding is long."""
    width, patches = config["embed_dim"], (config["vision_cfg"]["image_size"] // patch) ** 2
    return timm_image(width, patches, layer_count, patch, {"patch_embed.proj.bias": (width,)})


def timm_pe_core_image(config: Mapping[str, Any], *, width: int, layer_count: int, patch: int = 16) -> Shapes:
    """PE-Core's, with a class token and a projection."""
    dimension, patches = config["embed_dim"], (config["vision_cfg"]["image_size"] // patch) ** 2
    own: Shapes = {
        "cls_token": (1, 1, width), "norm_pre.weight": (width,), "norm_pre.bias": (width,),
        "head.weight": (dimension, width), "head.bias": (dimension,),
    }  # fmt: skip
    return timm_image(width, patches + 1, layer_count, patch, own)


def transformers_text(base: transformers.PretrainedConfig) -> Callable[[Mapping[str, Any]], Shapes]:
    """A text tower that transformers has, and the two layers behind its mean, or the one."""

    def shapes(config: Mapping[str, Any]) -> Shapes:
        with torch.device("meta"):
            model = transformers.AutoModel.from_config(base, add_pooling_layer=False)
        width, dimension = base.hidden_size, config["embed_dim"]
        hidden = (width + dimension) // 2
        two: Shapes = {"text.proj.0.weight": (hidden, width), "text.proj.2.weight": (dimension, hidden)}
        one: Shapes = {"text.proj.weight": (dimension, width)}
        return {
            **{
                f"text.transformer.{name}": tuple(tensor.shape) for name, tensor in model.state_dict().items()
            },
            **(one if config["text_cfg"].get("hf_proj_type") == "linear" else two),
        }

    return shapes
