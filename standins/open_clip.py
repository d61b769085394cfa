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
from standins.open_clip_weights import (
    Shapes,
    own_image,
    own_text,
    timm_pe_core_image,
    timm_siglip_image,
    transformers_text,
)
from standins.tokenizers import write_json
from standins.untrained_tokenizers import (
    write_bert,
    write_gemma,
    write_openai_bpe,
    write_t5,
    write_xlm_roberta,
)


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
