"""Writes folders in open_clip's exact layout with seeded random weights, without open_clip.

Weights are drawn by NumPy and tokenizers are not trained, so that a folder is the same everywhere, and what
open_clip itself gave for it can be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from standins.checkpoints import CLIP_MEAN, CLIP_STD
from standins.tokenizers import write_json
from standins.untrained_tokenizers import (
    write_bert,
    write_gemma,
    write_openai_bpe,
    write_t5,
    write_xlm_roberta,
)

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


@dataclass(frozen=True)
class Kind:
    """A published model, in sizes of its own.

    Attributes:
        model: `model_cfg`.
        preprocess: `preprocess_cfg`.
        image, text: the weights of each tower, of a `model_cfg`.
        write_tokenizer: into a folder, of a size.
        vocabulary: that size.
        pickled: whether the weights are a pickle, in half precision.
        base: the configuration of the text tower that transformers has, in a folder of its name.
    """

    model: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    image: Callable[[Mapping[str, Any]], Shapes]
    text: Callable[[Mapping[str, Any]], Shapes]
    write_tokenizer: Callable[[Path, int], None]
    vocabulary: int
    pickled: bool = False
    base: transformers.PretrainedConfig | None = None


def write_open_clip(folder: Path, kind: Kind, seed: int = 6) -> Path:
    """open_clip's layout as `push_to_hf_hub` writes it."""
    kind.write_tokenizer(folder, kind.vocabulary)
    write_json(
        folder / "open_clip_config.json",
        {"model_cfg": dict(kind.model), "preprocess_cfg": dict(kind.preprocess)},
    )
    rng = np.random.default_rng(seed)
    state = {
        name: _drawn(rng, name, shape)
        for name, shape in (kind.image(kind.model) | kind.text(kind.model)).items()
    }
    # Those of LAION's ViT-B-32, and of ViT-B-16-SigLIP, are about so.
    state["logit_scale"] = torch.tensor(4.6052)
    if "init_logit_bias" in kind.model:
        state |= {"logit_scale": torch.tensor(4.765), "logit_bias": torch.tensor(-12.93)}
    if kind.pickled:
        torch.save(
            {name: tensor.half() for name, tensor in state.items()}, folder / "open_clip_pytorch_model.bin"
        )
    else:
        save_file(state, folder / "open_clip_model.safetensors")
    if kind.base is not None:
        # The published folder names its base by hub id only; a local one carries the base's config beside it.
        kind.base.save_pretrained(folder / kind.model["text_cfg"]["hf_model_name"])
    return folder


def _drawn(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Tensor:
    """Of a size that keeps activations about as they are; and no zeros, which would hide what is left out."""
    values: npt.NDArray[Any] = rng.standard_normal(shape, dtype=np.float32)
    last = name.rpartition(".")[2]
    if len(shape) == 1 and last in ("weight", "gamma"):
        values = 1 + values / 10
    elif len(shape) == 1:
        values /= 20
    else:
        inputs = shape[0] if name.endswith(("proj", "text_projection")) else int(np.prod(shape[1:]))
        values *= 0.7 / inputs**0.5
    return torch.from_numpy(values.astype(np.float32))


def xlm_roberta(width: int, layer_count: int, heads: int, vocabulary: int) -> transformers.XLMRobertaConfig:
    """xlm-roberta-base's configuration, in sizes of its own."""
    return transformers.XLMRobertaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layer_count,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )


CLIP_PREPROCESS = {"mean": CLIP_MEAN, "std": CLIP_STD}
FULL_PREPROCESS = {"interpolation": "bicubic", "resize_mode": "shortest"}

_VISION = {"image_size": 49, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}

SIGLIP_PREPROCESS = {
    "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash",
}  # fmt: skip


def siglip(width: int, vocabulary: int, image_size: int, text_layers: int, **text: Any) -> dict[str, Any]:
    """`model_cfg` of ViT-B-16-SigLIP, in sizes of its own; `text` is what SigLIP 2 has beside it."""
    return {
        "embed_dim": width,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": image_size,
            "timm_model_name": "vit_base_patch16_siglip_224",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 64,
            "vocab_size": vocabulary,
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": width,
            "heads": 12,
            "layers": text_layers,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            **text,
        },
    }


def pe_core(dimension: int, image_size: int, text: Mapping[str, int]) -> dict[str, Any]:
    """`model_cfg` of PE-Core-B-16, in sizes of its own; `text` are those of its texts."""
    return {
        "embed_dim": dimension,
        "vision_cfg": {
            "image_size": image_size,
            "timm_model_name": "vit_pe_core_base_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": None,
        },
        "text_cfg": {"context_length": 32, **text},
        "custom_text": True,
    }


PE_CORE_PREPROCESS = {**SIGLIP_PREPROCESS, "interpolation": "bilinear"}

_CLIPA_RESIZE = {"interpolation": "bilinear", "resize_mode": "squash"}
_XLM_R = xlm_roberta(48, 2, 2, 2000)

KINDS = {
    # LAION's, DataComp's: weights without `custom_text`, and the tokenizer that no configuration names.
    "open-clip": Kind(
        {
            "embed_dim": 32,
            "vision_cfg": _VISION,
            "text_cfg": {"context_length": 77, "vocab_size": 600, "width": 48, "heads": 2, "layers": 2},
        },
        CLIP_PREPROCESS,
        own_image, own_text, write_openai_bpe, 600,
    ),
    # DFN's: OpenAI's activation; here with LayerScale, another length, and a pickle of half weights.
    "open-clip-quickgelu": Kind(
        {
            "embed_dim": 32,
            "quick_gelu": True,
            "custom_text": True,
            "vision_cfg": {**_VISION, "ls_init_value": 1.0},
            "text_cfg": {
                "context_length": 32, "vocab_size": 600, "width": 40, "heads": 2, "layers": 2,
                "ls_init_value": 1.0,
            },
        },
        {**CLIP_PREPROCESS, **FULL_PREPROCESS, "interpolation": "bilinear"},
        own_image, own_text, write_openai_bpe, 600, pickled=True,
    ),
    # LAION's multilingual pair.
    "open-clip-xlm-r": Kind(
        {
            "embed_dim": 32,
            "vision_cfg": _VISION,
            "text_cfg": {
                "hf_model_name": "xlm-roberta-base", "hf_tokenizer_name": "xlm-roberta-base",
                "hf_pooler_type": "mean_pooler",
            },
        },
        CLIP_PREPROCESS,
        own_image, transformers_text(_XLM_R), write_xlm_roberta, 2000, base=_XLM_R,
    ),
    # CLIPA's: the mean of the patches, and BERT's words without an end.
    "open-clip-clipa": Kind(
        {
            "embed_dim": 32,
            "vision_cfg": {**_VISION, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
            "text_cfg": {
                "context_length": 32, "vocab_size": 2000, "hf_tokenizer_name": "bert-base-uncased",
                "tokenizer_kwargs": {"strip_sep_token": True}, "width": 48, "heads": 2, "layers": 2,
                "pool_type": "last", "no_causal_mask": True,
            },
        },
        {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], **_CLIPA_RESIZE},
        own_image, own_text, write_bert, 2000,
    ),
    "open-clip-siglip": Kind(
        siglip(48, 2000, 56, 2), SIGLIP_PREPROCESS,
        partial(timm_siglip_image, layer_count=2), own_text, write_t5, 2000,
    ),
    "open-clip-siglip-2": Kind(
        siglip(
            48, 2000, 56, 2, act_kwargs={"approximate": "tanh"}, hf_tokenizer_name="timm/ViT-B-16-SigLIP2"
        ),
        SIGLIP_PREPROCESS,
        partial(timm_siglip_image, layer_count=2), own_text, write_gemma, 2000,
    ),
    # Meta's: places turn queries and keys, in twelve heads of eight numbers.
    "open-clip-pe-core": Kind(
        pe_core(32, 56, {"vocab_size": 600, "width": 48, "heads": 2, "layers": 2}), PE_CORE_PREPROCESS,
        partial(timm_pe_core_image, width=96, layer_count=2), own_text, write_openai_bpe, 600,
    ),
}  # fmt: skip

# One of these with another value: for the test of that value, and no layout of its own.
VARIANTS = {
    "open-clip-xlm-r-linear": replace(
        KINDS["open-clip-xlm-r"],
        model={
            **KINDS["open-clip-xlm-r"].model,
            "text_cfg": {**KINDS["open-clip-xlm-r"].model["text_cfg"], "hf_proj_type": "linear"},
        },
    ),
}

# As published.
_VIT_B_32 = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
_XLM_R_BASE = xlm_roberta(768, 12, 12, 250002)
FULL_SIZE = {
    "CLIP-ViT-B-32-laion2B": Kind(
        {
            "embed_dim": 512,
            "vision_cfg": _VIT_B_32,
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
        },
        CLIP_PREPROCESS,
        own_image, own_text, write_openai_bpe, 49408,
    ),
    "CLIP-ViT-B-32-xlm-roberta-base-laion5B": Kind(
        {
            "embed_dim": 512,
            "vision_cfg": _VIT_B_32,
            "text_cfg": {
                "hf_model_name": "xlm-roberta-base", "hf_tokenizer_name": "xlm-roberta-base",
                "hf_pooler_type": "mean_pooler",
            },
        },
        CLIP_PREPROCESS,
        own_image, transformers_text(_XLM_R_BASE), write_xlm_roberta, 250002, base=_XLM_R_BASE,
    ),
    "ViT-B-16-SigLIP": Kind(
        siglip(768, 32000, 224, 12), SIGLIP_PREPROCESS,
        partial(timm_siglip_image, layer_count=12), own_text, write_t5, 32000,
    ),
    "PE-Core-B-16": Kind(
        pe_core(1024, 224, {"vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24}),
        PE_CORE_PREPROCESS,
        partial(timm_pe_core_image, width=768, layer_count=12), own_text, write_openai_bpe, 49408,
    ),
}  # fmt: skip
