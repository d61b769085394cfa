"""Plain traceable encoders made from the weights of eager originals.

They compute what the originals compute, without what keeps those from tracing well: no device constant in the
graph, no shape baked in, pooling, projection, rescaling and normalising inside. That they do is not assumed:
`export_scripts.publish` compares every traced encoder with its untouched original.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel, CLIPModel, DistilBertModel, PreTrainedModel, XLMRobertaModel

from clipserve.encoder_spec import ImagePreprocessing
from clipserve.errors import ExportError

PIXEL_MAX = 255.0  # uint8 pixels; preprocessors rescale them to [0, 1]


# OpenAI CLIP's approximation of GELU is x * sigmoid(1.702 x).
QUICK_GELU = 1.702

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": F.silu}


@dataclass(frozen=True)
class Architecture:
    """What an encoder computes with its weights, beside what their names and shapes say.

    The encoders below take their numbers from here and never from a checkpoint's configuration, and
    `export_scripts.identity` hashes every field: what an encoder depends on is in its identity, and what is
    only in the configuration is not.

    Attributes:
        heads: of attention.
        activation: one of `ACTIVATIONS`.
        norm_eps: of every layer norm.
    """

    heads: int
    activation: str
    norm_eps: float


@dataclass(frozen=True)
class ImageArchitecture(Architecture):
    """CLIP's vision transformer; pooled at its first token.

    Attributes:
        patch_size: edge of a patch, pixels.
    """

    patch_size: int


@dataclass(frozen=True)
class ClipTextArchitecture(Architecture):
    """CLIP's text transformer: causal.

    Attributes:
        end_token: pooled at its first place; None pools at the first place of the highest token id.
    """

    end_token: int | None


@dataclass(frozen=True)
class MeanPooledArchitecture(Architecture):
    """A BERT-like transformer, mean over the tokens that are not padding.

    Attributes:
        padding_id: positions are counted behind it, over the tokens that are something else, as in RoBERTa;
            None counts all tokens from 0, as in BERT.
    """

    padding_id: int | None


class SelfAttention(nn.Module):
    """Multi-head self-attention with query, key and value as one matrix product."""

    def __init__(
        self,
        query: nn.Linear,
        key: nn.Linear,
        value: nn.Linear,
        out: nn.Linear,
        heads: int,
        *,
        causal: bool = False,
    ):
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(query.in_features, 3 * query.out_features)
        self.qkv.weight = nn.Parameter(torch.cat([query.weight, key.weight, value.weight]))
        self.qkv.bias = nn.Parameter(torch.cat([query.bias, key.bias, value.bias]))
        self.out = out

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` `[N, L, W]`; `mask` boolean `[N, 1, 1, L]`, False where a key is padding."""
        # [N, L, 3W] -> three times [N, H, L, W/H]; unbind, since iterating would warn in a trace
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        attended: Tensor = self.out(y.transpose(1, 2).flatten(-2))
        return attended


class Mlp(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, up: nn.Linear, down: nn.Linear, activation: str):
        super().__init__()
        if activation == "quick_gelu":
            # x * sigmoid(ax) = silu(ax) / a: one pass over the widest tensor instead of three.
            up, down = _scaled(up, QUICK_GELU), _scaled(down, 1 / QUICK_GELU, bias=False)
        self.up = up
        self.down = down
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """`[N, L, W]` to `[N, L, W]`."""
        y: Tensor = self.down(self.activation(self.up(x)))
        return y


def _scaled(linear: nn.Linear, factor: float, *, bias: bool = True) -> nn.Linear:
    """A copy with all weights times `factor`, and its bias as well where `bias` says so."""
    scaled = nn.Linear(linear.in_features, linear.out_features)
    scaled.weight = nn.Parameter(linear.weight.detach() * factor)
    scaled.bias = nn.Parameter(linear.bias.detach() * (factor if bias else 1.0))
    return scaled


class PreNormLayer(nn.Module):
    """A transformer layer as CLIP has it: normalised before attention and before the MLP."""

    def __init__(self, attention: SelfAttention, mlp: Mlp, norm1: nn.LayerNorm, norm2: nn.LayerNorm):
        super().__init__()
        self.attention, self.mlp, self.norm1, self.norm2 = attention, mlp, norm1, norm2

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`[N, L, W]` to `[N, L, W]`."""
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]  # torch modules are Any


class PooledLayer(nn.Module):
    """The last `PreNormLayer` before all tokens but one are dropped: only that one is computed.

    The others give their keys and values, and are neither asked nor passed through the MLP: the same numbers
    for a sixth of the layer's products.
    """

    def __init__(self, layer: PreNormLayer):
        super().__init__()
        qkv, width = layer.attention.qkv, layer.attention.out.in_features
        self.heads = layer.attention.heads
        self.query = _rows(qkv, slice(width))
        self.key_value = _rows(qkv, slice(width, None))
        self.out = layer.attention.out
        self.mlp, self.norm1, self.norm2 = layer.mlp, layer.norm1, layer.norm2

    def forward(self, x: Tensor, pool: Callable[[Tensor], Tensor], mask: Tensor | None) -> Tensor:
        """`[N, L, W]` to `[N, W]`.

        Args:
            pool: takes the wanted token: `[N, L, W]` to `[N, W]`.
            mask: boolean `[N, 1, 1, L]`, False where the wanted token does not see another.
        """
        normed = self.norm1(x)
        q = self.query(pool(normed)).unflatten(-1, (self.heads, 1, -1))  # [N, H, 1, W/H]
        # [N, L, 2W] -> twice [N, H, L, W/H]
        k, v = self.key_value(normed).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = pool(x) + self.out(y.flatten(1))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]  # torch modules are Any


def _rows(linear: nn.Linear, rows: slice) -> nn.Linear:
    """The layer that gives these of another's outputs."""
    part = nn.Linear(linear.in_features, len(linear.bias[rows]))
    part.weight = nn.Parameter(linear.weight.detach()[rows])
    part.bias = nn.Parameter(linear.bias.detach()[rows])
    return part


class PostNormLayer(nn.Module):
    """A transformer layer as BERT has it: normalised after attention and after the MLP."""

    def __init__(self, attention: SelfAttention, mlp: Mlp, norm1: nn.LayerNorm, norm2: nn.LayerNorm):
        super().__init__()
        self.attention, self.mlp, self.norm1, self.norm2 = attention, mlp, norm1, norm2

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`[N, L, W]` to `[N, L, W]`."""
        x = self.norm1(x + self.attention(x, mask))
        normed: Tensor = self.norm2(x + self.mlp(x))
        return normed


class Unnormalized(nn.Module):
    """Float32 embeddings as the projection gives them."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, D]` of any float type to float32 `[N, D]`."""
        return x.float()


class L2Normalized(nn.Module):
    """Float32 embeddings of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, D]` of any float type to float32 `[N, D]`."""
        return F.normalize(x.float(), dim=-1)


def _check_pixels(pixel_values: Tensor, height: int, width: int, message: str) -> Tensor:
    """`pixel_values`, if they are uint8 `[N, 3, height, width]`; else a ValueError with this message."""
    if (
        pixel_values.dtype != torch.uint8
        or pixel_values.dim() != 4
        or pixel_values.size(1) != 3
        or pixel_values.size(2) != height
        or pixel_values.size(3) != width
    ):
        raise ValueError(message)
    return pixel_values


# Scripted, so that a trace keeps it as a branch. `torch.export` has types and fixed sizes of its own.
check_pixels: Callable[[Tensor, int, int, str], Tensor] = torch.jit.script(_check_pixels)


class ImageEncoder(nn.Module):
    """CLIP's vision transformer with its projection.

    Rescaling to [0, 1] and mean/std are affine, and so is the patch projection that follows: they are folded
    into it. Patches do not overlap, so that cutting them out is a reshape.

    Args:
        clip: the original; float32.
        architecture: see `image_architecture`.
        preprocessing: its mean and std.
        output: last stage, `L2Normalized` or `Unnormalized`.
    """

    def __init__(
        self,
        clip: CLIPModel,
        architecture: ImageArchitecture,
        preprocessing: ImagePreprocessing,
        output: nn.Module,
    ):
        super().__init__()
        # transformers types its submodules too loosely to check.
        vision: Any = clip.vision_model
        self.patch = architecture.patch_size
        self.size = (preprocessing.crop_height, preprocessing.crop_width)
        self.wanted_pixels = preprocessing.wanted_pixels
        std = torch.tensor(preprocessing.std, dtype=torch.float64).view(1, 3, 1, 1)
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64).view(1, 3, 1, 1)
        weight = vision.embeddings.patch_embedding.weight.detach().double()  # [W, 3, P, P]
        positions = vision.embeddings.position_embedding.weight.detach().double()  # [1 + patches, W]
        self.patch_projection = nn.Linear(weight[0].numel(), weight.shape[0], bias=False)
        self.patch_projection.weight = nn.Parameter((weight / (PIXEL_MAX * std)).flatten(1).float())
        offset = -(weight * mean / std).flatten(1).sum(1)  # [W], what the mean takes away
        self.class_token = nn.Parameter(
            (vision.embeddings.class_embedding.detach().double() + positions[0]).float()[None, None]
        )
        self.patch_positions = nn.Parameter((positions[1:] + offset).float()[None])
        self.norm_before = vision.pre_layrnorm
        layers = [_clip_layer(layer, architecture, causal=False) for layer in vision.encoder.layers]
        self.layers = nn.ModuleList(layers[:-1])
        self.last_layer = PooledLayer(layers[-1])
        self.norm_after = vision.post_layernorm
        self.projection = clip.visual_projection
        self.output = output

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embeds pictures.

        Args:
            pixel_values: uint8 `[N, 3, H, W]`, RGB, 0–255, resized and cropped.

        Returns:
            float32 `[N, D]`.

        Raises:
            ValueError: other pixels, which would give another vector without a word. A loaded trace raises
                its language's exception with the same message.
        """
        pixel_values = check_pixels(pixel_values, *self.size, self.wanted_pixels)
        x = pixel_values.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # [N,3,h,P,w,P]
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [N, hw, 3PP]
        x = self.patch_projection(x.to(self.patch_projection.weight.dtype)) + self.patch_positions
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)  # [N, 1 + hw, W]
        x = self.norm_before(x)
        for layer in self.layers:
            x = layer(x, None)
        x = self.last_layer(x, _first, None)
        embedding: Tensor = self.output(self.projection(self.norm_after(x)))
        return embedding


class ClipTextEncoder(nn.Module):
    """CLIP's own text transformer with its projection, pooled at the end token.

    Args:
        clip: the original; float32.
        architecture: see `clip_text_architecture`.
        output: last stage, `L2Normalized` or `Unnormalized`.
    """

    def __init__(self, clip: CLIPModel, architecture: ClipTextArchitecture, output: nn.Module):
        super().__init__()
        text: Any = clip.text_model
        self.tokens = text.embeddings.token_embedding
        self.positions = nn.Parameter(text.embeddings.position_embedding.weight.detach()[None])
        layers = [_clip_layer(layer, architecture, causal=True) for layer in text.encoder.layers]
        self.layers = nn.ModuleList(layers[:-1])
        self.last_layer = PooledLayer(layers[-1])
        self.norm_after = text.final_layer_norm
        self.projection = clip.text_projection
        self.end_token = architecture.end_token
        self.output = output

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeds texts.

        Args:
            input_ids: int64 `[N, L]`, padded on the right.
            attention_mask: int64 `[N, L]`, 0 where padded. Nothing looks at it: attention is causal, so that
                no token up to the end token sees the padding after it.

        Returns:
            float32 `[N, D]`.
        """
        x = self.tokens(input_ids) + self.positions[:, : input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x, None)
        ends = input_ids if self.end_token is None else (input_ids == self.end_token).int()
        end = ends.argmax(1)  # [N]
        # Positions counted from 1, without a device constant: the end token sees what is not after it.
        seen = (input_ids >= 0).long().cumsum(1) <= end[:, None] + 1
        x = self.last_layer(x, partial(_take, positions=end), seen[:, None, None, :])
        embedding: Tensor = self.output(self.projection(self.norm_after(x)))
        return embedding


def _first(x: Tensor) -> Tensor:
    """Row 0 of each: `[N, L, W]` to `[N, W]`."""
    return x[:, 0]


def _take(x: Tensor, positions: Tensor) -> Tensor:
    """Row `positions[n]` of each `x[n]`: `[N, L, W]` to `[N, W]`. Indexing would need a device constant."""
    return x.gather(1, positions[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)


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


def check_supported(transformer: nn.Module) -> None:
    """Checks that there is an encoder for a transformer and its settings.

    Raises:
        ExportError: there is none.
    """
    if not isinstance(transformer, CLIPModel | DistilBertModel | BertModel | XLMRobertaModel):
        raise ExportError(
            f"text transformer {type(transformer).__name__} is not supported; supported are "
            "CLIPModel, DistilBertModel, BertModel and XLMRobertaModel"
        )
    config = transformer.config
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        # transformers 5 has dropped them: it would load the checkpoint and leave its distances out.
        raise ExportError(f"position_embedding_type {positions!r} is not supported; supported is 'absolute'")
    if getattr(config, "is_decoder", False):
        raise ExportError("is_decoder true is not supported: attention is masked; supported is an encoder")
    for part in (getattr(config, name, config) for name in ("vision_config", "text_config")):
        activation = getattr(part, "hidden_act", None) or getattr(part, "activation", None)
        if activation not in ACTIVATIONS:
            raise ExportError(
                f"activation {activation!r} is not supported; supported are {', '.join(ACTIVATIONS)}"
            )


def image_architecture(clip: CLIPModel) -> ImageArchitecture:
    """The numbers of a CLIP's vision transformer."""
    # transformers types its configurations too loosely to check.
    config: Any = clip.config.vision_config
    return ImageArchitecture(
        heads=config.num_attention_heads,
        activation=config.hidden_act,
        norm_eps=_norm_eps(clip.vision_model),
        patch_size=config.patch_size,
    )


def clip_text_architecture(clip: CLIPModel) -> ClipTextArchitecture:
    """The numbers of a CLIP's text transformer."""
    config: Any = clip.config.text_config
    return ClipTextArchitecture(
        heads=config.num_attention_heads,
        activation=config.hidden_act,
        norm_eps=_norm_eps(clip.text_model),
        # The published configurations name 2 as end token, which it is not; transformers then pools at the
        # highest token id, which the end token has in CLIP's vocabulary.
        end_token=None if config.eos_token_id == 2 else config.eos_token_id,
    )


def mean_pooled_architecture(transformer: PreTrainedModel) -> MeanPooledArchitecture:
    """The numbers of a DistilBERT, BERT or XLM-RoBERTa."""
    config: Any = transformer.config
    distilbert = isinstance(transformer, DistilBertModel)
    return MeanPooledArchitecture(
        heads=config.n_heads if distilbert else config.num_attention_heads,
        activation=config.activation if distilbert else config.hidden_act,
        norm_eps=_norm_eps(transformer),
        padding_id=config.pad_token_id if isinstance(transformer, XLMRobertaModel) else None,
    )


def _norm_eps(transformer: nn.Module) -> float:
    """Of its layer norms: DistilBERT's is written in its code, the others' in their configurations."""
    found = {module.eps for module in transformer.modules() if isinstance(module, nn.LayerNorm)}
    if len(found) != 1:
        raise ExportError(f"layer norms of several eps {sorted(found)} are not supported; supported is one")
    return float(found.pop())


class MeanPooledTextEncoder(nn.Module):
    """A BERT-like transformer, mean over the tokens that are not padding, and a linear projection.

    Args:
        transformer: the original DistilBERT, BERT or XLM-RoBERTa; float32.
        architecture: see `mean_pooled_architecture`.
        projection: the linear head.
        output: last stage, `L2Normalized` or `Unnormalized`.
    """

    def __init__(
        self,
        transformer: PreTrainedModel,
        architecture: MeanPooledArchitecture,
        projection: nn.Linear,
        output: nn.Module,
    ):
        super().__init__()
        embeddings: Any = transformer.embeddings
        # Without the original's `padding_idx`, which steers gradients only and makes the tracer warn.
        self.tokens = nn.Embedding.from_pretrained(embeddings.word_embeddings.weight)
        self.norm = embeddings.LayerNorm
        stack: Any = transformer
        # DistilBERT has none.
        token_types: Any = getattr(embeddings, "token_type_embeddings", None)
        self.positions: nn.Module
        if architecture.padding_id is None:
            self.positions = AbsolutePositions(embeddings.position_embeddings, token_types)
        else:
            self.positions = PaddingAwarePositions(
                embeddings.position_embeddings, token_types, architecture.padding_id
            )
        if isinstance(transformer, DistilBertModel):
            layers = [_distilbert_layer(layer, architecture) for layer in stack.transformer.layer]
        else:
            layers = [_bert_layer(layer, architecture) for layer in stack.encoder.layer]
        self.layers = nn.ModuleList(layers)
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
        weights = attention_mask[:, :, None].float()
        # In float32: a sum of many half-precision tokens loses digits.
        pooled = (x.float() * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        embedding: Tensor = self.output(self.projection(pooled.to(x.dtype)))
        return embedding


def _clip_layer(layer: Any, architecture: Architecture, *, causal: bool) -> PreNormLayer:
    attention = layer.self_attn
    return PreNormLayer(
        SelfAttention(
            attention.q_proj,
            attention.k_proj,
            attention.v_proj,
            attention.out_proj,
            architecture.heads,
            causal=causal,
        ),
        Mlp(layer.mlp.fc1, layer.mlp.fc2, architecture.activation),
        layer.layer_norm1,
        layer.layer_norm2,
    )


def _bert_layer(layer: Any, architecture: Architecture) -> PostNormLayer:
    attention, output = layer.attention, layer.output
    return PostNormLayer(
        SelfAttention(
            attention.self.query,
            attention.self.key,
            attention.self.value,
            attention.output.dense,
            architecture.heads,
        ),
        Mlp(layer.intermediate.dense, output.dense, architecture.activation),
        attention.output.LayerNorm,
        output.LayerNorm,
    )


def _distilbert_layer(layer: Any, architecture: Architecture) -> PostNormLayer:
    attention = layer.attention
    return PostNormLayer(
        SelfAttention(
            attention.q_lin, attention.k_lin, attention.v_lin, attention.out_lin, architecture.heads
        ),
        Mlp(layer.ffn.lin1, layer.ffn.lin2, architecture.activation),
        layer.sa_layer_norm,
        layer.output_layer_norm,
    )
