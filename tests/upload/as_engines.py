"""Embeds texts with a file for OpenSearch or Elasticsearch as these do it: their tokens, their call.

    python as_engines.py opensearch FILE.zip TEXTS.json VECTORS.npy
    python as_engines.py elasticsearch FOLDER TEXTS.json VECTORS.npy

Needs PyTorch, tokenizers and NumPy, of any version, and nothing of clipserve's.
"""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer


def opensearch(archive, texts):
    """float32 `[N, D]`; ml-commons cuts texts by `tokenizer.json` alone, and calls with one dictionary."""
    with zipfile.ZipFile(archive) as files:
        [encoder] = [name for name in files.namelist() if name.endswith(".pt")]
        tokenizer = Tokenizer.from_str(files.read("tokenizer.json").decode())
        module = torch.jit.load(io.BytesIO(files.read(encoder)))
    vectors = []
    for encoding in map(tokenizer.encode, texts):
        ids, mask = torch.tensor([encoding.ids]), torch.tensor([encoding.attention_mask])
        vectors.append(module({"input_ids": ids, "attention_mask": mask})["sentence_embedding"][0])
    return torch.stack(vectors).numpy()


def elasticsearch(folder, texts):
    """float32 `[N, D]`; of BERT's kind: words by its rules, cut by the configuration, four tensors."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = config["inference_config"]["text_embedding"]["tokenization"]["bert"]
    vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))["vocabulary"]
    lower = settings["do_lower_case"]
    tokenizer = Tokenizer(WordPiece({t: i for i, t in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=lower, strip_accents=lower)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    first, last = vocabulary.index("[CLS]"), vocabulary.index("[SEP]")
    module = torch.jit.load(str(folder / "traced_pytorch_model.pt"))
    vectors = []
    for text in texts:
        inner = tokenizer.encode(text).ids[: settings["max_sequence_length"] - 2]
        ids = torch.tensor([[first, *inner, last]])
        zeros, positions = torch.zeros_like(ids), torch.arange(ids.shape[1])[None]
        vectors.append(module(ids, torch.ones_like(ids), zeros, positions)[0])
    return torch.stack(vectors).numpy()


def main(engine, path, texts, vectors):
    """Writes the vectors of a JSON list of texts."""
    embed = {"opensearch": opensearch, "elasticsearch": elasticsearch}[engine]
    with torch.inference_mode():
        np.save(vectors, embed(path, json.loads(Path(texts).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main(*sys.argv[1:])
