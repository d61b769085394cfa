"""Writes the demo's models as the sentence-transformers hub lays out the originals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPImageProcessor, CLIPModel, PreTrainedModel

from demo.models import EMBEDDING, IMAGE_SIZE, MAX_TOKENS, Student


def write_json(path: Path, content: object) -> None:
    """Writes JSON for people to read, and the folders that the file lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_clip_tokenizer_files(
    folder: Path, vocabulary: Mapping[str, int], merges: Iterable[str], config: Mapping[str, object]
) -> None:
    """Writes the files of a `CLIPTokenizer`.

    Args:
        merges: of the byte-level BPE, each two tokens with a space between; the first is done first.
        config: what `tokenizer_config.json` says besides the special tokens and the class.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *merges, ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    specials = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    write_json(folder / "special_tokens_map.json", specials)
    write_json(folder / "tokenizer_config.json", {**specials, **config, "tokenizer_class": "CLIPTokenizer"})


def _write_modules(folder: Path, modules: list[tuple[str, str]]) -> None:
    """`modules.json` with (path, class) of each, in the classes' names on the hub."""
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", entries)
    versions = {
        "sentence_transformers": version("sentence-transformers"),
        "transformers": version("transformers"),
        "pytorch": torch.__version__,
    }
    write_json(folder / "config_sentence_transformers.json", {"__version__": versions})


def _write_weights(folder: Path, model: PreTrainedModel) -> None:
    """Half precision on disk, but a configuration that has them loaded as float32."""
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    model.config.to_json_file(folder / "config.json")
    _write_tensors(folder / "model.safetensors", model)


def _write_tensors(path: Path, module: nn.Module) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, path, {"format": "pt"})
    path.chmod(0o644)  # safetensors leaves it to its owner alone


def write_clip(folder: Path, model: CLIPModel, tokenizer_files: Path) -> None:
    """The layout of sentence-transformers/clip-ViT-B-32."""
    _write_modules(folder, [("0_CLIPModel", "CLIPModel")])
    inner = folder / "0_CLIPModel"
    shutil.copytree(tokenizer_files, inner)
    _write_weights(inner, model)
    CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    ).save_pretrained(inner)


def write_multilingual(folder: Path, model: Student, tokenizer_files: Path) -> None:
    """The layout of sentence-transformers/clip-ViT-B-32-multilingual-v1."""
    shutil.copytree(tokenizer_files, folder)
    _write_modules(folder, [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")])
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": MAX_TOKENS["student"], "do_lower_case": False},
    )
    _write_weights(folder, model.bert)
    pooling = {f"pooling_mode_{mode}": mode == "mean_tokens"
               for mode in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")}  # fmt: skip
    width = model.dense.in_features
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": width, **pooling})
    dense = {"in_features": width, "out_features": EMBEDDING, "bias": False,
             "activation_function": "torch.nn.modules.linear.Identity"}  # fmt: skip
    write_json(folder / "2_Dense/config.json", dense)
    linear = nn.Module()
    linear.linear = model.dense
    _write_tensors(folder / "2_Dense/model.safetensors", linear)
