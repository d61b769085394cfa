"""Text encoders for Elasticsearch, whose ml-cpp runs them: `make export FORMAT=elasticsearch`.

Facts are from the sources of elastic/ml-cpp, elastic/elasticsearch and `eland`, which writes such files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from tokenizers import models
from torch import Tensor, nn

from clipserve.loading import load_torchscript
from clipserve.preprocessing import TextPreprocessing
from export_scripts.encoders.spelling import Spelling, fixed_size
from export_scripts.packages.conventions import Convention, Exported
from export_scripts.packages.folders import link_or_copy
from export_scripts.packages.vocabularies import (
    Unigram,
    WordPiece,
    refusal,
    tokenizer_of,
    unigram,
    word_piece,
)
from export_scripts.parity.subjects import Subject

# As eland names them.
MODEL_FILE = "traced_pytorch_model.pt"
VOCABULARY_FILE = "vocabulary.json"
CONFIG_FILE = "config.json"

# Since 9.4, and 8.19 since July 2026, ml-cpp runs no model with an operator outside of the list in its
# CSupportedOperations.cc; its releases cannot be told to (elastic/ml-cpp, 3008, 3130 and 3098). These are on
# that list, and all that the encoders need in the spelling below.
OPERATORS = frozenset(
    {
        *("aten::Int", "aten::add", "aten::clamp", "aten::cumsum", "aten::div", "aten::embedding"),
        *("aten::gelu", "aten::layer_norm", "aten::linear", "aten::matmul", "aten::mean", "aten::mul"),
        *("aten::ne", "aten::permute", "aten::reshape", "aten::scaled_dot_product_attention"),
        *("aten::select", "aten::size", "aten::slice", "aten::sqrt", "aten::squeeze", "aten::to"),
        *("aten::transpose", "aten::unsqueeze", "aten::view"),
        *("prim::Constant", "prim::GetAttr", "prim::ListConstruct", "prim::NumToTensor"),
    }
)


def _unflatten(x: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
    at = dim % x.dim()
    return x.view(*x.shape[:at], *sizes, *x.shape[at + 1 :])


def _flatten(x: Tensor, start_dim: int) -> Tensor:
    return x.reshape(*x.shape[: start_dim % x.dim()], -1)


def _unbind(x: Tensor, dim: int) -> list[Tensor]:
    return [x.select(dim, i) for i in range(fixed_size(x, dim))]


def _sum(x: Tensor, dim: int) -> Tensor:
    return x.mean(dim) * x.shape[dim]


def _normalize(x: Tensor, p: float, dim: int, eps: float, out: None) -> Tensor:
    # As `L2Normalized` asks: p is 2, the dimension the last.
    squares = torch.matmul(x.unsqueeze(-2), x.unsqueeze(-1)).squeeze(-1)  # [N, 1]
    return x / squares.sqrt().clamp(min=eps)


# `gt` is asked of an attention mask only, which is 0 or 1.
SPELLING: Spelling = {
    torch.Tensor.unflatten: _unflatten,
    torch.Tensor.flatten: _flatten,
    torch.Tensor.unbind: _unbind,
    torch.Tensor.sum: _sum,
    torch.Tensor.gt: torch.Tensor.ne,
    torch.Tensor.__gt__: torch.Tensor.ne,
    F.normalize: _normalize,
}


class FourInputs(nn.Module):
    """An encoder called as Elasticsearch calls a BERT: two inputs more, which it needs not."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, position_ids: Tensor
    ) -> Tensor:
        """All int64 `[N, L]`; float32 `[N, D]`."""
        embedding: Tensor = self.encoder(input_ids, attention_mask)
        return embedding


class TwoInputs(nn.Module):
    """An encoder called as Elasticsearch calls an XLM-R."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Both int64 `[N, L]`; float32 `[N, D]`."""
        embedding: Tensor = self.encoder(input_ids, attention_mask)
        return embedding


def _four(ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return ids, mask, torch.zeros_like(ids), positions


def _two(ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    return ids, mask


def texts(subject: Subject) -> Convention:
    """It has BERT's and XLM-R's tokenizers, and reads their vocabularies.

    Raises:
        ExportError: the checkpoint has another.
    """
    assert subject.text is not None
    definition = tokenizer_of(subject)
    vocabulary = _vocabulary(definition)
    is_bert = isinstance(vocabulary, WordPiece)
    written = json.loads(vocabulary_json(vocabulary))
    tokens = _tokens(written, tokenization(vocabulary, subject.text), definition)
    return Convention(
        wrap=FourInputs if is_bert else TwoInputs,
        arguments=_four if is_bert else _two,
        result=lambda output: output,
        tokens=lambda text: tokens(vocabulary.as_asked(text) if isinstance(vocabulary, WordPiece) else text),
        spelling=SPELLING,
        operators=OPERATORS,
        left_to_caller=vocabulary.left_to_caller if isinstance(vocabulary, WordPiece) else None,
    )


def _vocabulary(definition: str) -> WordPiece | Unigram:
    vocabulary = word_piece(definition) or unigram(definition)
    if vocabulary is None:
        raise refusal("Elasticsearch", "BERT's WordPiece and XLM-R's Unigram", definition)
    return vocabulary


def vocabulary_json(vocabulary: WordPiece | Unigram) -> str:
    """What Elasticsearch's own tokenizer is made of."""
    content: dict[str, Any] = {"vocabulary": vocabulary.tokens}
    if isinstance(vocabulary, Unigram):
        content["scores"] = vocabulary.scores
    return json.dumps(content, ensure_ascii=False) + "\n"


def tokenization(vocabulary: WordPiece | Unigram, preprocessing: TextPreprocessing) -> dict[str, Any]:
    """How texts are cut into tokens, under the name of the tokenizer."""
    lengths = {
        "with_special_tokens": True,
        "max_sequence_length": preprocessing.context_length,
        "truncate": "first",
        "span": -1,
    }
    if isinstance(vocabulary, WordPiece):
        return {"bert": {"do_lower_case": vocabulary.lowercase, **lengths}}
    return {"xlm_roberta": lengths}


def _tokens(
    vocabulary: dict[str, Any], tokenization: dict[str, Any], definition: str
) -> Callable[[str], list[int]]:
    """The ids of a text by what lies beside the encoder; XLM-R's rules for text are the program's own."""
    ((kind, settings),) = tokenization.items()
    tokens = vocabulary["vocabulary"]
    if kind == "bert":
        tokenizer = WordPiece(tuple(tokens), settings["do_lower_case"]).tokenizer()
        first, last = tokens.index("[CLS]"), tokens.index("[SEP]")
    else:
        scored = list(zip(tokens, vocabulary["scores"], strict=True))
        tokenizer = tokenizers.Tokenizer.from_str(definition)
        tokenizer.model = models.Unigram(scored, tokens.index("<unk>"))
        first, last = tokens.index("<s>"), tokens.index("</s>")
    most = settings["max_sequence_length"] - 2
    return lambda text: [first, *tokenizer.encode(text, add_special_tokens=False).ids[:most], last]


def lay_out(exported: Exported, folder: Path) -> list[Path]:
    """`STEM/` with the encoder, its vocabulary, and what says how texts are cut into tokens."""
    spec, text = exported.spec, exported.pair.text
    made = folder / spec.stem
    made.mkdir()
    link_or_copy(exported.path, made / MODEL_FILE)
    vocabulary = _vocabulary(text.tokenizer)
    (made / VOCABULARY_FILE).write_text(vocabulary_json(vocabulary), encoding="utf-8")
    config = {
        "description": f"Text encoder {spec.checkpoint}; embedding space {spec.space_id}",
        "model_type": "pytorch",
        "inference_config": {
            "text_embedding": {
                "tokenization": tokenization(vocabulary, text.preprocessing),
                "embedding_size": spec.embedding_dim,
            }
        },
        "input": {"field_names": ["text_field"]},
        "metadata": _memory(exported.path, text.preprocessing.context_length),
    }
    (made / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return [made]


def _memory(path: Path, length: int) -> dict[str, int]:
    """What a node is to have room for, bytes: the weights, and for each text at once what is computed of it.

    The latter is taken for all layers of a text of the greatest length, though most is let go in between.
    """
    module = load_torchscript(path, torch.device("cpu"))
    layers: list[Any] = [layer for layer in module.modules() if layer.original_name == "Linear"]
    return {
        "per_deployment_memory_bytes": sum(t.numel() * t.element_size() for t in module.parameters()),
        "per_allocation_memory_bytes": sum(length * layer.weight[:, 0].nbytes for layer in layers),
    }
