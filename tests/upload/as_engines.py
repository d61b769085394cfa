"""Embeds texts with a file for OpenSearch or Elasticsearch as these do it: their tokens, their call.

    python as_engines.py opensearch FILE.zip TEXTS.json VECTORS.npy
    python as_engines.py elasticsearch FOLDER TEXTS.json VECTORS.npy

Needs PyTorch, tokenizers and NumPy, of any version, and nothing of clipserve's.
"""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.implementations import BertWordPieceTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "old_torch"))

from call_encoder import PROGRAMS, load


def opensearch(path):
    """Encoder and tokenizer; DJL's is this library, and `tokenizer.json` alone cuts texts."""
    with zipfile.ZipFile(path) as archive:
        return load(path), Tokenizer.from_str(archive.read("tokenizer.json").decode())


def elasticsearch(path):
    """Encoder and tokenizer; its own are BERT's and XLM-R's, and the configuration cuts texts."""
    folder = Path(path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ((kind, settings),) = config["inference_config"]["text_embedding"]["tokenization"].items()
    vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    tokens = vocabulary["vocabulary"]
    if kind == "bert":
        ids = {token: number for number, token in enumerate(tokens)}
        tokenizer = BertWordPieceTokenizer(ids, lowercase=settings["do_lower_case"])
    else:
        assert kind == "xlm_roberta"
        scored = list(zip(tokens, vocabulary["scores"], strict=True))
        tokenizer = Tokenizer(models.Unigram(scored, tokens.index("<unk>")))
        # SentencePiece's nmt_nfkc has the same for these texts, and is in no file: the program brings it.
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        special = [(token, tokens.index(token)) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=special)
    tokenizer.enable_truncation(settings["max_sequence_length"])
    return load(str(folder / "traced_pytorch_model.pt")), tokenizer


def main(engine, path, texts, vectors):
    """Writes the vectors, float32 `[N, D]`, of a JSON list of texts, asked for one by one."""
    encoder, tokenizer = {"opensearch": opensearch, "elasticsearch": elasticsearch}[engine](path)
    found = []
    for encoding in map(tokenizer.encode, json.loads(Path(texts).read_text(encoding="utf-8"))):
        inputs = torch.tensor([encoding.ids]), torch.tensor([encoding.attention_mask])
        with torch.inference_mode():
            found.append(PROGRAMS[engine](encoder, *inputs))
    np.save(vectors, torch.cat(found).numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
