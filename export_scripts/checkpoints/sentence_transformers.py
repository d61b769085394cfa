"""sentence-transformers' layouts: `modules.json` around a model of two towers, or around a text transformer.

| modules | image | text |
|---|---|---|
| a model of two towers of which this is the original (`Family.original`) | yes | its own text tower |
| Transformer, Pooling, Dense | | yes |

A last Normalize is taken off: whether an export normalises is said by its spec. Without `modules.json` the
folder is a model of two towers as transformers saves it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import Tensor, nn

from clipserve.encoder_spec import FloatArray
from clipserve.errors import ExportError
from export_scripts.checkpoints.image import image_checkpoint, pillow_processor
from export_scripts.checkpoints.pair import ImageCheckpoint, TextCheckpoint
from export_scripts.checkpoints.reading import check_complete, in_our_words, model_type, move_to_own_memory
from export_scripts.checkpoints.text import (
    check_sentencepiece,
    check_vocabulary,
    length_limit,
    text_checkpoint,
)
from export_scripts.encoders.bert import bert_tower
from export_scripts.encoders.supported import FAMILIES, check_supported, no_image_encoder
from export_scripts.encoders.towers import Family, TextTower
from export_scripts.identity import used_weights, weights_sha256

MODULES = "modules.json"


def matches(folder: Path) -> bool:
    """Whether a folder has one of these layouts.

    Raises:
        ExportError: see `model_type`.
    """
    if (folder / MODULES).is_file():
        return True
    family = FAMILIES.get(model_type(folder) or "")
    return family is not None and _is_original(family)


def load_image(folder: Path, name: str) -> ImageCheckpoint:
    """Loads the image side.

    Raises:
        ExportError: there is none, or the checkpoint is damaged.
    """
    model = _sentence_transformer(folder)
    family = _family(model, folder)
    if family is None:
        raise no_image_encoder(folder)
    inner: Any = model[0]
    tower = family.image_tower(inner.model)
    inner.processor.image_processor = pillow_processor(folder / _first_module_path(folder))

    def reference(images: Sequence[Image.Image]) -> FloatArray:
        return np.asarray(
            model.encode(list(images), batch_size=len(images), show_progress_bar=False), np.float32
        )

    return image_checkpoint(name, tower, inner.processor.image_processor, folder, reference)


def load_text(folder: Path, name: str) -> TextCheckpoint:
    """Loads the text side.

    Raises:
        ExportError: the modules are no supported ones, or the checkpoint is damaged.
    """
    model = _sentence_transformer(folder)

    def reference(input_ids: Tensor, attention_mask: Tensor) -> FloatArray:
        features = {"input_ids": input_ids, "attention_mask": attention_mask, "modality": "text"}
        with torch.inference_mode():
            embedding: Tensor = model(features)["sentence_embedding"]
        return embedding.numpy()

    def reference_encode(texts: Sequence[str]) -> FloatArray:
        return np.asarray(
            model.encode(list(texts), batch_size=len(texts), show_progress_bar=False), np.float32
        )

    family = _family(model, folder)
    image_weights = None
    if family is None:
        tower = _transformer_and_dense(model, folder)
    else:
        inner: Any = model[0]
        tower = family.text_tower(inner.model)
        image_weights = weights_sha256(used_weights(*family.image_tower(inner.model).parts))
    context_length = min(length_limit(model.max_seq_length), tower.positions)
    # Some say no length, or one beyond the positions, of which the original would raise.
    model.max_seq_length = context_length
    return text_checkpoint(
        name,
        tower,
        model.tokenizer,
        context_length,
        folder,
        reference,
        reference_encode,
        image_weights_sha256=image_weights,
    )


def _is_original(family: Family) -> bool:
    return family.original == "sentence-transformers"


def _sentence_transformer(folder: Path) -> SentenceTransformer:
    """A checkpoint as sentence-transformers loads it, in float32, without a last Normalize."""
    with in_our_words(folder, "sentence-transformers cannot load it"):
        check_sentencepiece(folder / _first_module_path(folder))
        # A configuration that names a half precision would round float32 weights.
        model = SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
        )
        move_to_own_memory(model)
        inner: Any = getattr(model[0], "model", None)
        if isinstance(inner, transformers.PreTrainedModel):
            check_supported(inner)
            check_complete(type(inner), folder / _first_module_path(folder))
            check_vocabulary(folder / _first_module_path(folder))
    prompt = model.prompts.get(model.default_prompt_name or "")
    if prompt:
        raise ExportError(
            f"{folder}: its default prompt {prompt!r} is put before every text, which is not supported; "
            "put it before texts yourself, and set default_prompt_name to null in "
            "config_sentence_transformers.json"
        )
    if model.truncate_dim is not None:
        raise ExportError(
            f"{folder}: truncate_dim {model.truncate_dim} is not supported: embeddings are exported at "
            "their full length; set it to null in config_sentence_transformers.json, and cut them yourself"
        )
    last: Any = model[-1]
    if isinstance(last, Normalize) and _on_embeddings(last):
        model.pop(-1)
    return model.float().eval()


def _family(model: SentenceTransformer, folder: Path) -> Family | None:
    """Of a model of two towers; None of others.

    Raises:
        ExportError: its original is another library's. Or there are modules behind it: left out, the encoder
            would be another one.
    """
    inner: Any = model[0]
    kind = type(getattr(inner, "model", inner))
    family = next((family for family in FAMILIES.values() if family.model is kind), None)
    if family is not None and not _is_original(family):
        raise ExportError(
            f"{folder}: a {family.name} inside modules of sentence-transformers is not supported, for those "
            "may prepare its inputs otherwise than it was trained with; export the folder as transformers "
            f"saves it, without {MODULES}"
        )
    if family is not None and len(model) != 1:
        raise ExportError(
            f"{folder}: modules {_names(model)}; supported behind a {family.name} is Normalize only"
        )
    return family


def _names(model: SentenceTransformer) -> str:
    return ", ".join(type(module).__name__ for module in model)


def _on_embeddings(module: Any) -> bool:
    """Whether a module of sentence-transformers works on the embedding of a text, in place."""
    return {module.module_input_name, module.module_output_name} == {"sentence_embedding"}


def _first_module_path(folder: Path) -> str:
    """Where sentence-transformers keeps the transformer: `0_CLIPModel`, or the folder itself."""
    modules = folder / "modules.json"
    return str(json.loads(modules.read_text(encoding="utf-8"))[0]["path"]) if modules.is_file() else ""


def _transformer_and_dense(model: SentenceTransformer, folder: Path) -> TextTower:
    modules: list[Any] = list(model)
    if [type(module) for module in modules] != [Transformer, Pooling, Dense]:
        raise ExportError(
            f"{folder}: modules {_names(model)}; supported are Transformer, Pooling, Dense, and Normalize "
            "behind them"
        )
    transformer, pooling, dense = modules
    if pooling.pooling_mode != "mean":
        raise ExportError(f"{folder}: pooling {pooling.pooling_mode!r}; supported is 'mean'")
    if not isinstance(dense.activation_function, nn.Identity):
        activation = type(dense.activation_function).__name__
        raise ExportError(f"{folder}: Dense with activation {activation}; supported is Identity")
    if dense.use_residual or not _on_embeddings(dense):
        raise ExportError(
            f"{folder}: Dense with use_residual {dense.use_residual}, from {dense.module_input_name} to "
            f"{dense.module_output_name}; supported is one without, on sentence_embedding"
        )
    return bert_tower(transformer.model, dense.linear)
