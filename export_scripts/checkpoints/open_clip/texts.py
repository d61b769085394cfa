"""open_clip's text towers, as models of transformers: CLIP's, SigLIP's, and transformers' own."""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor, nn

from clipserve.errors import ExportError
from export_scripts.checkpoints.m_clip import MeanPoolingOriginal, transformer_of_base
from export_scripts.checkpoints.open_clip.config import PLAIN_BLOCKS, Config, activation, norm_eps
from export_scripts.checkpoints.open_clip.models import TextModel
from export_scripts.checkpoints.open_clip.weights import OPEN_CLIP, Renamed, Weights, unbiased
from export_scripts.encoders import bert, clip, siglip
from export_scripts.encoders.layers import linear
from export_scripts.identity import UNUSED_WEIGHTS

# Of every text tower: how its texts become tokens.
TOKENS = ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode")
LENGTH = 77


def text_model(config: Config, weights: Weights) -> TextModel:
    """A folder's text tower.

    Raises:
        ExportError: it is not supported, or its weights do not fit.
    """
    if config.text.values.get("hf_model_name"):
        return _of_transformers(config, weights)
    return _of_open_clip(config, weights)


def _of_transformers(config: Config, weights: Weights) -> TextModel:
    section = config.text
    found = section.read(
        {
            "hf_model_name": None,
            "hf_proj_type": "mlp",
            "hf_pooler_type": "mean_pooler",
            "context_length": LENGTH,
        },
        {"output_tokens": False},
        # The size is the base's.
        (*TOKENS, "hf_model_pretrained", "vocab_size"),
    )
    if found["hf_pooler_type"] != "mean_pooler":
        raise section.refusal("hf_pooler_type", "mean_pooler")
    transformer = transformer_of_base(config.folder, found["hf_model_name"])
    renamed = Renamed(weights.text, config.folder)
    width = transformer.config.hidden_size
    head: nn.Module
    if found["hf_proj_type"] == "mlp":
        hidden = (width + config.embedding_dim) // 2
        head = nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            nn.GELU(),
            nn.Linear(hidden, config.embedding_dim, bias=False),
        )
    elif found["hf_proj_type"] == "linear":
        head = nn.Linear(width, config.embedding_dim, bias=False)
    else:
        raise section.refusal("hf_proj_type", "mlp", "linear")
    model = nn.ModuleDict({"transformer": transformer, "proj": head})
    for name, tensor in model.state_dict().items():
        # Nobody reads BERT's pooler, and folders have none.
        absent = name.startswith(f"transformer.{UNUSED_WEIGHTS}") and name not in renamed
        renamed.state[name] = tensor if absent else renamed.take(name)
    renamed.load_into(model)
    eager = MeanPoolingOriginal(transformer, head)
    tower = bert.bert_tower(transformer, head)
    return TextModel(tower, eager, min(found["context_length"], tower.positions))


def _of_open_clip(config: Config, weights: Weights) -> TextModel:
    section = config.text
    found = section.read(
        {
            "context_length": LENGTH,
            "vocab_size": 49408,
            "width": 512,
            "heads": 8,
            "layers": 12,
            "pool_type": "argmax",
            "no_causal_mask": False,
            "act_kwargs": None,
            "norm_kwargs": None,
        },
        {**PLAIN_BLOCKS, "embed_cls": False, "proj_type": "linear"},
        # Sizes that are those of the weights, and what tells nothing without `eos` pooling and class token.
        (*TOKENS, "mlp_ratio", "ls_init_value", "proj_bias", "pad_id", "eos_id"),
    )
    pooled = (found["pool_type"], bool(found["no_causal_mask"]))
    build = _BUILDS.get(pooled)
    if build is None:
        raise ExportError(
            f"{section.path}: pool_type {pooled[0]!r} with no_causal_mask {pooled[1]} is not supported; "
            "supported are 'argmax' with False, and 'last' with True"
        )
    renamed = Renamed(weights.text, config.folder)
    renamed.state |= {
        "embeddings.token_embedding.weight": renamed.take("token_embedding.weight"),
        "embeddings.position_embedding.weight": renamed.take("positional_embedding"),
    }
    renamed.move({"ln_final": "final_layer_norm"})
    _, mlp_width = renamed.move_layers(OPEN_CLIP)
    sizes: dict[str, Any] = {
        "vocab_size": found["vocab_size"],
        "hidden_size": found["width"],
        "intermediate_size": mlp_width,
        "num_hidden_layers": found["layers"],
        "num_attention_heads": found["heads"],
        "max_position_embeddings": found["context_length"],
        "hidden_act": activation(section, config.quick_gelu, found["act_kwargs"]),
        "layer_norm_eps": norm_eps(section, found["norm_kwargs"]),
    }
    # A matrix to be multiplied from the right, or a linear layer.
    if "text_projection" in renamed:
        weight = renamed.take("text_projection").T.contiguous()
        bias = unbiased(weight)
    else:
        weight, bias = renamed.take("text_projection.weight"), renamed.take("text_projection.bias")
    return build(renamed, sizes, weight, bias)


def _causal(renamed: Renamed, sizes: dict[str, Any], weight: Tensor, bias: Tensor) -> TextModel:
    # By 2 transformers knows that the highest token id ends a text.
    config = transformers.CLIPTextConfig(**sizes, bos_token_id=None, pad_token_id=None, eos_token_id=2)
    text = transformers.CLIPTextModel(config)
    renamed.load_into(text)
    projection = linear(weight, bias if bias.any() else None)

    def original(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        pooled: Tensor = projection(text(input_ids=input_ids).pooler_output)
        return pooled

    return TextModel(clip.text_tower_of(text, projection), original, sizes["max_position_embeddings"])


def _seeing_all(renamed: Renamed, sizes: dict[str, Any], weight: Tensor, bias: Tensor) -> TextModel:
    config = transformers.SiglipTextConfig(
        **sizes, projection_size=weight.shape[0], bos_token_id=None, eos_token_id=None, pad_token_id=None
    )
    text = transformers.SiglipTextModel(config)
    renamed.state |= {"head.weight": weight, "head.bias": bias}
    renamed.load_into(text)

    def original(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        pooled: Tensor = text(input_ids=input_ids).pooler_output
        return pooled

    return TextModel(siglip.text_tower_of(text), original, sizes["max_position_embeddings"])


# Where texts are pooled, and whether each token sees those behind it.
_BUILDS = {("argmax", False): _causal, ("last", True): _seeing_all}
