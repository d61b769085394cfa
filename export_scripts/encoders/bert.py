"""BERT and what is built like it: post-norm layers, one vector of all tokens, a head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertModel,
    ChineseCLIPTextModel,
    DistilBertModel,
    PreTrainedModel,
    XLMRobertaModel,
)

from clipserve.errors import ExportError
from export_scripts.encoders.layers import Mlp, PostNormLayer, SelfAttention, alike
from export_scripts.encoders.towers import Architecture, TextTower, norm_eps
from export_scripts.identity import UNUSED_WEIGHTS


@dataclass(frozen=True)
class BertLike:
    """Where a model keeps what the encoder is made of; BERT's own names unless said otherwise.

    Attributes:
        model: of transformers.
        heads, activation: in its configuration.
        layers: in the model.
        query, key, value, out, norm1, up, down, norm2: in a layer.
        positions_behind_padding: see `BertArchitecture.padding_id`.
        alone: whether it is a text encoder by itself, and not the text side of a model of two towers.
    """

    model: type[PreTrainedModel]
    heads: str = "num_attention_heads"
    activation: str = "hidden_act"
    layers: str = "encoder.layer"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    out: str = "attention.output.dense"
    norm1: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    norm2: str = "output.LayerNorm"
    positions_behind_padding: bool = False
    alone: bool = True


BERT_LIKES: dict[type[PreTrainedModel], BertLike] = {
    names.model: names
    for names in (
        BertLike(BertModel),
        BertLike(ChineseCLIPTextModel, alone=False),
        BertLike(XLMRobertaModel, positions_behind_padding=True),
        BertLike(
            DistilBertModel,
            heads="n_heads",
            activation="activation",
            layers="transformer.layer",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            out="attention.out_lin",
            norm1="sa_layer_norm",
            up="ffn.lin1",
            down="ffn.lin2",
            norm2="output_layer_norm",
        ),
    )
}


@dataclass(frozen=True)
class BertArchitecture(Architecture):
    """A BERT-like transformer.

    Attributes:
        padding_id: positions are counted behind it, over the tokens that are something else, as in RoBERTa;
            None counts all tokens from 0, as in BERT.
    """

    padding_id: int | None


@dataclass(frozen=True)
class MeanPooledArchitecture(BertArchitecture):
    """The same, with the mean over the tokens that are not padding."""


@dataclass(frozen=True)
class FirstPooledArchitecture(BertArchitecture):
    """The same, with the first token alone, which is `[CLS]`."""


Pool = Callable[[Tensor, Tensor], Tensor]


def mean_of_tokens(x: Tensor, attention_mask: Tensor) -> Tensor:
    """`[N, L, W]` and int64 `[N, L]` to `[N, W]`: of the tokens whose mask is 1."""
    weights = attention_mask[:, :, None].float()
    # In float32: a sum of many half-precision tokens loses digits.
    pooled = (x.float() * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    return pooled.to(x.dtype)


def first_token(x: Tensor, attention_mask: Tensor) -> Tensor:
    """`[N, L, W]` to `[N, W]`."""
    return x[:, 0]


POOLS: dict[type[BertArchitecture], Pool] = {
    MeanPooledArchitecture: mean_of_tokens,
    FirstPooledArchitecture: first_token,
}


def bert_architecture(
    transformer: PreTrainedModel, kind: type[BertArchitecture] = MeanPooledArchitecture
) -> BertArchitecture:
    """The numbers of a BERT-like transformer that is pooled in this way, one of `POOLS`."""
    names, config = BERT_LIKES[type(transformer)], transformer.config
    return kind(
        heads=getattr(config, names.heads),
        activation=getattr(config, names.activation),
        norm_eps=norm_eps(transformer),
        padding_id=config.pad_token_id if names.positions_behind_padding else None,
    )


def bert_tower(
    transformer: PreTrainedModel, head: nn.Module, kind: type[BertArchitecture] = MeanPooledArchitecture
) -> TextTower:
    """A BERT-like transformer, pooled in one of the ways of `POOLS`, and the head behind it.

    The original is told to run each MLP in one piece: `chunk_size_feed_forward` changes no number, and fails
    at every length that is no multiple of it.
    """
    module: Any
    for module in transformer.modules():
        if hasattr(module, "chunk_size_feed_forward"):
            module.chunk_size_feed_forward = 0
    architecture = bert_architecture(transformer, kind)
    _check_parts(transformer)
    # transformers types its submodules too loosely to check.
    embeddings: Any = transformer.embeddings
    positions: int = embeddings.position_embeddings.num_embeddings
    if architecture.padding_id is not None:
        # RoBERTa's positions start behind the padding id: of 514 it uses 512.
        positions -= architecture.padding_id + 1
    return TextTower(
        architecture=architecture,
        parts=(transformer, head),
        embedding_dim=[part.out_features for part in head.modules() if isinstance(part, nn.Linear)][-1],
        vocabulary_size=embeddings.word_embeddings.num_embeddings,
        positions=positions,
        build=lambda output: BertTextEncoder(transformer, architecture, head, output),
    )


def _check_parts(transformer: PreTrainedModel) -> None:
    """Checks that the encoder reads every part of an original: what it left out would be in no vector.

    Raises:
        ExportError: there is another part, such as a projection of embeddings that are narrower.
    """
    read = ("embeddings.", f"{BERT_LIKES[type(transformer)].layers}.", UNUSED_WEIGHTS)
    others = [name for name, _ in transformer.named_parameters() if not name.startswith(read)]
    if others:
        raise ExportError(
            f"{type(transformer).__name__} with {others[0].rpartition('.')[0]} is not supported; supported "
            "is one of embeddings and layers only"
        )


class AbsolutePositions(nn.Module):
    """Learned positions counted from 0, as in BERT."""

    def __init__(self, embedding: nn.Embedding, token_types: nn.Embedding | None):
        super().__init__()
        weight = embedding.weight.detach()
        if token_types is not None:
            weight = weight + token_types.weight.detach()[0]
        self.weight = nn.Parameter(weight)

    def forward(self, input_ids: Tensor) -> Tensor:
        """`[N, L]` to `[L, W]`."""
        return self.weight[: input_ids.shape[1]]


class PaddingAwarePositions(nn.Module):
    """Learned positions counted over the tokens that are not padding, as in RoBERTa."""

    def __init__(self, embedding: nn.Embedding, token_types: nn.Embedding, padding_id: int):
        super().__init__()
        self.padding_id = padding_id
        self.weight = nn.Parameter(embedding.weight.detach() + token_types.weight.detach()[0])

    def forward(self, input_ids: Tensor) -> Tensor:
        """`[N, L]` to `[N, L, W]`."""
        real = (input_ids != self.padding_id).long()
        return F.embedding(real.cumsum(1) * real + self.padding_id, self.weight)


class BertTextEncoder(nn.Module):
    """A BERT-like transformer, its tokens pooled, and a projection.

    Args:
        transformer: the original, one of `BERT_LIKES`; float32.
        architecture: see `bert_architecture`.
        projection: the head, one linear layer or more.
        output: last stage, `L2Normalized` or `Unnormalized`.
    """

    def __init__(
        self,
        transformer: PreTrainedModel,
        architecture: BertArchitecture,
        projection: nn.Module,
        output: nn.Module,
    ):
        super().__init__()
        embeddings: Any = transformer.embeddings
        # Without the original's `padding_idx`, which steers gradients only and makes the tracer warn.
        self.tokens = nn.Embedding.from_pretrained(embeddings.word_embeddings.weight)
        self.norm = embeddings.LayerNorm
        # DistilBERT has none.
        token_types: Any = getattr(embeddings, "token_type_embeddings", None)
        self.positions: nn.Module
        if architecture.padding_id is None:
            self.positions = AbsolutePositions(embeddings.position_embeddings, token_types)
        else:
            self.positions = PaddingAwarePositions(
                embeddings.position_embeddings, token_types, architecture.padding_id
            )
        names = BERT_LIKES[type(transformer)]
        self.layers = nn.ModuleList(
            _layer(layer, names, architecture) for layer in attrgetter(names.layers)(transformer)
        )
        self.pool = POOLS[type(architecture)]
        self.projection = projection
        self.output = output

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeds texts.

        Args:
            input_ids: int64 `[N, L]`.
            attention_mask: int64 `[N, L]`, 0 where padded.

        Returns:
            float32 `[N, D]`.
        """
        x = self.norm(self.tokens(input_ids) + self.positions(input_ids))
        mask = (attention_mask > 0)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        embedding: Tensor = self.output(alike(self.projection, self.pool(x, attention_mask)))
        return embedding


def _layer(layer: nn.Module, names: BertLike, architecture: Architecture) -> PostNormLayer:
    query, key, value, out, norm1, up, down, norm2 = attrgetter(
        names.query, names.key, names.value, names.out, names.norm1, names.up, names.down, names.norm2
    )(layer)
    return PostNormLayer(
        SelfAttention(query, key, value, out, architecture.heads),
        Mlp(up, down, architecture.activation),
        norm1,
        norm2,
    )
