"""Text encoders for OpenSearch, whose ml-commons runs them with DJL: `make export FORMAT=opensearch`.

`STEM.zip` holds the encoder and its `tokenizer.json`; `STEM.config.json` is what a registration says of it.
Facts are from the sources of opensearch-project/ml-commons and `opensearch-py-ml`, which writes such files.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import tokenizers
from torch import Tensor, nn

from clipserve import __version__
from clipserve.archive_files import file_sha256
from clipserve.encoder_spec import TOKENIZER_FILE, TextPreprocessing
from export_scripts import zips
from export_scripts.packages.conventions import Convention, Exported
from export_scripts.packages.vocabularies import tokenizer_of
from export_scripts.parity.subjects import Subject

# A query asks for it by this name.
OUTPUT = "sentence_embedding"

CONFIG_ENDING = ".config.json"

# Of a configuration, what says how it was saved and not what was.
SAVED_WITH = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


class DictionaryToDictionary(nn.Module):
    """An encoder whose inputs come in one dictionary, and whose embeddings go in another."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, input1: dict[str, Tensor]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, int64 `[N, L]`, to `sentence_embedding`, float32 `[N, D]`."""
        return {OUTPUT: self.encoder(input1["input_ids"], input1["attention_mask"])}


def texts(subject: Subject) -> Convention:
    """Its tokenizer is whatever `tokenizer.json` says, and so is the length that texts are cut at."""
    assert subject.text is not None
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json(tokenizer_of(subject), subject.text))
    return Convention(
        wrap=DictionaryToDictionary,
        arguments=lambda ids, mask: ({"input_ids": ids, "attention_mask": mask},),
        result=lambda output: output[OUTPUT],
        tokens=lambda text: list(tokenizer.encode(text).ids),
        spelling={},
    )


def tokenizer_json(definition: str, preprocessing: TextPreprocessing) -> str:
    """A checkpoint's `tokenizer.json` with the lengths that are set by its caller here.

    Nothing else cuts a text in OpenSearch. Padding is named too: the library's own would be token 0.
    """
    content: dict[str, Any] = json.loads(definition)
    content["truncation"] = {
        "direction": "Right",
        "max_length": preprocessing.context_length,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": preprocessing.pad_token_id,
        "pad_type_id": 0,
        "pad_token": tokenizers.Tokenizer.from_str(definition).id_to_token(preprocessing.pad_token_id),
    }
    return json.dumps(content, ensure_ascii=False)


def lay_out(exported: Exported, folder: Path) -> list[Path]:
    """`STEM.zip` and `STEM.config.json`."""
    spec, text = exported.spec, exported.pair.text
    archive = folder / f"{spec.stem}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        with exported.path.open("rb") as reader:
            zips.add(target, exported.path.name, reader, exported.path.stat().st_size)
        zips.add_text(target, TOKENIZER_FILE, tokenizer_json(text.tokenizer, text.preprocessing))
    kept = {name: value for name, value in text.config.items() if name not in SAVED_WITH}
    config = {
        "name": spec.stem,
        "version": __version__,
        "description": f"Text encoder {spec.checkpoint}; embedding space {spec.space_id}",
        "model_format": "TORCH_SCRIPT",
        "model_task_type": "TEXT_EMBEDDING",
        "model_content_hash_value": file_sha256(archive),
        "model_content_size_in_bytes": archive.stat().st_size,
        "model_config": {
            "model_type": text.config["model_type"],
            "embedding_dimension": spec.embedding_dim,
            "framework_type": "sentence_transformers",
            "all_config": json.dumps(kept, sort_keys=True),
        },
    }
    beside = folder / f"{spec.stem}{CONFIG_ENDING}"
    beside.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return [beside, archive]
