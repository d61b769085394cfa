"""M-CLIP's two layouts: a multilingual transformer, masked mean, and a linear head with bias.

M-BERT's head is a pickle of NumPy arrays beside the transformer; XLM-R's lies in the same state dict, and the
transformer's configuration in the repository that it names as its base.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from clipserve.encoder_spec import FloatArray
from clipserve.errors import ExportError
from export_scripts.checkpoints.hub import hub_folder
from export_scripts.checkpoints.numpy_pickle import read_linear_head
from export_scripts.checkpoints.pair import TextCheckpoint
from export_scripts.checkpoints.reading import (
    check_complete,
    first_names,
    in_our_words,
    model_type,
    move_to_own_memory,
    read_json,
    read_state_dict,
)
from export_scripts.checkpoints.text import (
    check_sentencepiece,
    check_vocabulary,
    length_limit,
    text_checkpoint,
)
from export_scripts.encoders.bert import bert_tower
from export_scripts.encoders.layers import linear
from export_scripts.encoders.supported import check_supported
from export_scripts.identity import UNUSED_WEIGHTS


class MeanPoolingOriginal(nn.Module):
    """M-CLIP's own forward pass: masked mean of the last hidden state, then the head. open_clip's too."""

    def __init__(self, transformer: nn.Module, head: nn.Module):
        super().__init__()
        self.transformer = transformer
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Both int64 `[N, L]`; gives `[N, D]`."""
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask[:, :, None]
        pooled: Tensor = self.head((hidden * mask).sum(1) / mask.sum(1))
        return pooled


def is_bert(folder: Path) -> bool:
    """Whether this is a BERT, beside which the head should lie."""
    return model_type(folder) == "bert"


def load_bert(folder: Path, name: str) -> TextCheckpoint:
    """Loads an M-BERT and its pickled head.

    Raises:
        ExportError: a part is missing, damaged or hostile, or does not fit the others.
    """
    heads = sorted(folder.glob("*.pkl"))
    if len(heads) != 1:
        raise ExportError(
            f"{folder}: {len(heads)} pickled linear heads (*.pkl), should be one; M-CLIP publishes it "
            "apart from the transformer ('M-BERT-Base-69-ViT Linear Weights.pkl'): put it in this folder"
        )
    weight, bias = read_linear_head(heads[0])
    with in_our_words(folder, "transformers cannot load it"):
        transformer = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        )
        move_to_own_memory(transformer)
        check_supported(transformer)
        check_complete(type(transformer), folder)
    if weight.shape[0] != transformer.config.hidden_size:
        raise ExportError(
            f"{heads[0]}: takes {weight.shape[0]} numbers, the transformer gives "
            f"{transformer.config.hidden_size}; the two are no pair"
        )
    head = linear(
        torch.from_numpy(weight.T.astype(np.float32).copy()), torch.from_numpy(bias.astype(np.float32))
    )
    return _m_clip(folder, name, transformer, head)


def is_xlm_roberta(folder: Path) -> bool:
    """Whether this is of M-CLIP's own type."""
    return model_type(folder) == "M-CLIP"


def load_xlm_roberta(folder: Path, name: str) -> TextCheckpoint:
    """Loads an XLM-R with its head.

    Raises:
        ExportError: a part is missing or damaged, or does not fit the others.
    """
    config = read_json(folder / "config.json")
    with in_our_words(folder, "its weights do not fit its config.json"):
        transformer = transformer_of_base(folder, config["modelBase"])
        head = nn.Linear(config["transformerDimensions"], config["numDims"])
        container = nn.ModuleDict({"transformer": transformer, "LinearTransformation": head})
        found = container.load_state_dict(read_state_dict(folder), strict=False)
        missing = [key for key in found.missing_keys if not key.startswith(f"transformer.{UNUSED_WEIGHTS}")]
        # Older files carry position ids, which are no weights.
        strange = [key for key in found.unexpected_keys if not key.endswith(".position_ids")]
        if missing or strange:
            raise ExportError(
                f"{folder}: its weights do not fit its config.json: missing {first_names(missing)}, not "
                f"expected {first_names(strange)}"
            )
    return _m_clip(folder, name, transformer, head)


def transformer_of_base(folder: Path, name: str) -> transformers.PreTrainedModel:
    """A transformer as a checkpoint names it, whose own weights are in the checkpoint itself.

    Args:
        name: on the hub, where its configuration lies; or of a folder in the checkpoint's.

    Raises:
        ExportError: it is out of reach, or not supported.
    """
    base = folder / name
    if not base.is_dir():
        base = hub_folder(name if "/" in name else f"FacebookAI/{name}", only="config.json")
    config = transformers.AutoConfig.from_pretrained(base)
    transformer: transformers.PreTrainedModel = transformers.AutoModel.from_config(
        config, dtype=torch.float32
    )
    check_supported(transformer)
    return transformer


def _m_clip(
    folder: Path, name: str, transformer: transformers.PreTrainedModel, head: nn.Linear
) -> TextCheckpoint:
    transformer.float().eval()
    head.eval()
    tower, eager = bert_tower(transformer, head), MeanPoolingOriginal(transformer, head)
    check_vocabulary(folder)
    check_sentencepiece(folder)
    with in_our_words(folder, "transformers cannot load its tokenizer"):
        auto = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    context_length = min(length_limit(auto.model_max_length), tower.positions)

    def reference(input_ids: Tensor, attention_mask: Tensor) -> FloatArray:
        with torch.inference_mode():
            embedding: Tensor = eager(input_ids, attention_mask)
        return embedding.numpy()

    def reference_encode(texts: Sequence[str]) -> FloatArray:
        tokens = auto(
            list(texts), padding=True, truncation=True, max_length=context_length, return_tensors="pt"
        )
        return reference(tokens["input_ids"], tokens["attention_mask"])

    return text_checkpoint(name, tower, auto, context_length, folder, reference, reference_encode)
