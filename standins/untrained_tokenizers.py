"""Small tokenizers that nobody trains: the same bytes in every process, so that numbers of them can be kept.

A vocabulary is the characters of the phrases in 40 languages, and their most frequent words.
"""

from __future__ import annotations

import base64
import math
import re
import string
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import transformers

from standins.tokenizers import corpus, write_json

WORD = re.compile(r"[^\W\d_]+")


@cache
def frequent(lower: bool) -> tuple[tuple[str, int], ...]:
    """Words and how often they occur, the most frequent first."""
    phrases = (phrase.lower() if lower else phrase for phrase in corpus())
    counted = Counter(word for phrase in phrases for word in WORD.findall(phrase))
    return tuple(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def merges(words: list[list[str]], most: int) -> list[tuple[str, str]]:
    """Merges of a BPE by which each of these words, in symbols, grows from its beginning."""
    found: dict[tuple[str, str], None] = {}
    for symbols in words:
        grown = symbols[0]
        for symbol in symbols[1:]:
            found.setdefault((grown, symbol))
            grown += symbol
            if len(found) == most:
                return list(found)
    return list(found)


def byte_symbols() -> dict[int, str]:
    """OpenAI's symbol of each byte, in the order of its vocabulary: `bytes_to_unicode` of its tokenizer."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def write_openai_bpe(folder: Path, size: int) -> None:
    """CLIP's tokenizer in all its files: `vocab.json`, `merges.txt` and `tokenizer.json`."""
    of_byte = byte_symbols()
    symbols = list(of_byte.values())
    words = [[of_byte[byte] for byte in word.encode()] for word, _ in frequent(lower=True)]
    made = merges([[*word[:-1], f"{word[-1]}</w>"] for word in words if len(word) > 1], size - 514)
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(left + right for left, right in made)]
    tokens += [f"unused{number}</w>" for number in range(size - 2 - len(tokens))]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    kind: Any = transformers.CLIPTokenizer
    tokenizer = kind(
        vocab={token: number for number, token in enumerate(tokens)}, merges=made, model_max_length=77
    )
    tokenizer.save_pretrained(folder)
    write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in made)]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


@cache
def charsmap() -> str:
    """SentencePiece's own NFKC, as XLM-R's and T5's `tokenizer.json` have it, in Base64."""
    import sentencepiece

    # Generated, so that no checker knows what is in it.
    from sentencepiece import sentencepiece_model_pb2 as generated

    normalizer: Any = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc")
    proto: Any = vars(generated)["ModelProto"].FromString(normalizer.serialized_model_proto())
    return base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode("ascii")


def unigram(first: list[str], last: list[str], size: int, *, lower: bool) -> list[list[Any]]:
    """Pieces and scores of a SentencePiece model between special tokens."""
    words = frequent(lower)
    characters = Counter(character for word, count in words for character in word * count)
    counted = [("▁", sum(count for _, count in words))]
    counted += sorted(characters.items(), key=lambda item: (-item[1], item[0]))
    counted += [(f"▁{word}", count) for word, count in words]
    counted = counted[: size - len(first) - len(last)]
    total = sum(count for _, count in counted)
    pieces = [[piece, round(math.log(count / total), 4)] for piece, count in counted]
    return [[token, 0.0] for token in first] + pieces + [[token, 0.0] for token in last]


def _added(tokens: dict[str, int]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": number, "content": token, **flags} for token, number in tokens.items()]


def _template(before: dict[str, int], after: dict[str, int]) -> dict[str, Any]:
    def special(tokens: dict[str, int]) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": token, "type_id": 0}} for token in tokens]

    single = [*special(before), {"Sequence": {"id": "A", "type_id": 0}}, *special(after)]
    second = [{"Sequence": {"id": "B", "type_id": 0}}, *special(after)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single + second,
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for token, number in (before | after).items()
        },
    }


def _write(folder: Path, definition: dict[str, Any], config: dict[str, Any]) -> None:
    whole = {"version": "1.0", "truncation": None, "padding": None, **definition}
    write_json(folder / "tokenizer.json", whole)
    write_json(folder / "tokenizer_config.json", config)
    names = {
        name: token for name, token in config.items() if name.endswith("_token") and isinstance(token, str)
    }
    write_json(folder / "special_tokens_map.json", names)


_METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
_SENTENCEPIECE = {
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, _METASPACE]},
    "decoder": _METASPACE,
}


def write_xlm_roberta(folder: Path, size: int) -> None:
    """XLM-R's Unigram as `tokenizer.json`."""
    pieces = unigram(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"], size, lower=False)
    begin, end = {"<s>": 0}, {"</s>": 2}
    _write(
        folder,
        {
            "added_tokens": _added({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": len(pieces) - 1}),
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap()},
            **_SENTENCEPIECE,
            "post_processor": _template(begin, end),
            "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": False},
        },
        {
            "bos_token": "<s>",
            "cls_token": "<s>",
            "eos_token": "</s>",
            "mask_token": "<mask>",
            "model_max_length": 512,
            "pad_token": "<pad>",
            "sep_token": "</s>",
            "tokenizer_class": "XLMRobertaTokenizer",
            "unk_token": "<unk>",
        },
    )


def write_t5(folder: Path, size: int) -> None:
    """SigLIP's SentencePiece model, as open_clip's folders have it: T5's, which pads with the end token."""
    pieces = unigram(["<pad>", "</s>", "<unk>"], [], size, lower=True)
    _write(
        folder,
        {
            "added_tokens": _added({"<pad>": 0, "</s>": 1, "<unk>": 2}),
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap()},
            **_SENTENCEPIECE,
            "post_processor": _template({}, {"</s>": 1}),
            "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False},
        },
        {
            "additional_special_tokens": [],
            "eos_token": "</s>",
            "extra_ids": 0,
            "legacy": False,
            "model_max_length": 64,
            "pad_token": "</s>",
            "tokenizer_class": "T5Tokenizer",
            "unk_token": "<unk>",
        },
    )


def write_gemma(folder: Path, size: int) -> None:
    """SigLIP 2's BPE: Gemma's."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [["▁", *word] for word, _ in frequent(lower=True)]
    characters = sorted({character for word in words for character in word})
    made = merges(words, size - len(special) - len(byte_tokens) - len(characters))
    grown = [left + right for left, right in made]
    # A word that is the beginning of another one has its token once.
    tokens = list(dict.fromkeys([*special, *byte_tokens, *characters, *grown]))
    tokens += [f"<unused{number}>" for number in range(size - len(tokens))]
    _write(
        folder,
        {
            "added_tokens": _added({token: number for number, token in enumerate(special)}),
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "pre_tokenizer": {
                "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                "invert": False,
            },
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                ],
            },
            "post_processor": _template({}, {"<eos>": 1}),
            "model": {
                "type": "BPE",
                "unk_token": "<unk>",
                "fuse_unk": True,
                "byte_fallback": True,
                "vocab": {token: number for number, token in enumerate(tokens)},
                "merges": [list(pair) for pair in made],
            },
        },
        {
            "add_bos_token": False,
            "add_eos_token": True,
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "model_max_length": 64,
            "pad_token": "<pad>",
            "padding_side": "right",
            "tokenizer_class": "GemmaTokenizer",
            "unk_token": "<unk>",
        },
    )  # fmt: skip


def write_bert(folder: Path, size: int) -> None:
    """bert-base-uncased's WordPiece as `tokenizer.json` and `vocab.txt`."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [word for word, _ in frequent(lower=True)]
    characters = sorted({character for word in words for character in word})
    tokens = [*special, *string.punctuation, *characters, *(f"##{character}" for character in characters)]
    tokens = list(dict.fromkeys([*tokens, *words]))[:size]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    _write(
        folder,
        {
            "added_tokens": _added({token: number for number, token in enumerate(special)}),
            "normalizer": {
                "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                "strip_accents": None, "lowercase": True,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "post_processor": _template({"[CLS]": 2}, {"[SEP]": 3}),
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": {token: number for number, token in enumerate(tokens)},
            },
        },
        {
            "cls_token": "[CLS]",
            "do_lower_case": True,
            "mask_token": "[MASK]",
            "model_max_length": 512,
            "pad_token": "[PAD]",
            "sep_token": "[SEP]",
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "tokenizer_class": "BertTokenizer",
            "unk_token": "[UNK]",
        },
    )  # fmt: skip
