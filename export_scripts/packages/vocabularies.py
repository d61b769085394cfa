"""Checkpoints' tokenizers for programs that have BERT's and XLM-R's themselves, and read a vocabulary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import models

from clipserve.errors import ExportError
from export_scripts.parity.subjects import Subject

# By their text: programs look for them in a vocabulary.
UNKNOWN = "[UNK]"
BERT_SPECIAL = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
XLM_R_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@dataclass(frozen=True)
class WordPiece:
    """BERT's tokenizer.

    Attributes:
        tokens: by id.
        lowercase: whether a text is put into lower case, and its accents are stripped.
        caller_lowers: whether it is put into lower case with its accents left, which no program that has
            BERT's tokenizer does: whoever asks has to.
    """

    tokens: tuple[str, ...]
    lowercase: bool
    caller_lowers: bool = False

    def as_asked(self, text: str) -> str:
        """A text as the program is to be given it."""
        return text.lower() if self.caller_lowers else text

    @property
    def left_to_caller(self) -> str | None:
        """What whoever asks has to do, in one sentence; None where that is nothing."""
        if not self.caller_lowers:
            return None
        return (
            "the tokenizer puts texts into lower case and leaves their accents, which this program cannot be "
            "told: put texts into lower case before they are embedded there"
        )

    def tokenizer(self) -> tokenizers.Tokenizer:
        """As BERT's authors published it, without special tokens around a text."""
        model = models.WordPiece(
            vocab={token: i for i, token in enumerate(self.tokens)},
            unk_token=UNKNOWN,
            max_input_chars_per_word=100,
        )
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=self.lowercase)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        return tokenizer


@dataclass(frozen=True)
class Unigram:
    """XLM-R's tokenizer.

    Attributes:
        tokens, scores: by id.
    """

    tokens: tuple[str, ...]
    scores: tuple[float, ...]


def word_piece(definition: str) -> WordPiece | None:
    """What a `tokenizer.json` says of BERT's tokenizer; None where it is another."""
    content: dict[str, Any] = json.loads(definition)
    model, normalizer = content["model"], content["normalizer"] or {}
    lowercase = bool(normalizer.get("lowercase"))
    wanted = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": normalizer.get("strip_accents"),
        "lowercase": lowercase,
    }
    is_bert = (
        model["type"] == "WordPiece"
        and (model["unk_token"], model["continuing_subword_prefix"]) == (UNKNOWN, "##")
        and model["max_input_chars_per_word"] == 100
        and normalizer == wanted
        and (lowercase or not normalizer["strip_accents"])
        and (content["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
    )
    if not is_bert:
        return None
    tokens = _tokens(definition, BERT_SPECIAL)
    if tokens is None or not _around(definition, "[CLS]", "[SEP]"):
        return None
    caller_lowers = lowercase and normalizer["strip_accents"] is False
    return WordPiece(tokens, lowercase and not caller_lowers, caller_lowers)


def unigram(definition: str) -> Unigram | None:
    """What a `tokenizer.json` says of XLM-R's tokenizer; None where it is another.

    How it normalises a text is not looked at: programs have SentencePiece's rules for XLM-R by themselves.
    """
    content: dict[str, Any] = json.loads(definition)
    if content["model"]["type"] != "Unigram" or "Metaspace" not in json.dumps(content["pre_tokenizer"]):
        return None
    tokens = _tokens(definition, XLM_R_SPECIAL)
    if tokens is None or not _around(definition, "<s>", "</s>"):
        return None
    scores = dict(content["model"]["vocab"])
    # Special tokens are never looked for in a text.
    return Unigram(tokens, tuple(0.0 if t in XLM_R_SPECIAL else float(scores[t]) for t in tokens))


def tokenizer_of(subject: Subject) -> str:
    """Text of the `tokenizer.json` of a text encoder."""
    (definition,) = subject.extra_files.values()
    return definition


def refusal(program: str, has: str, definition: str) -> ExportError:
    """Of a tokenizer that a program does not have.

    Args:
        has: the tokenizers that it has.
    """
    kind = json.loads(definition)["model"]["type"]
    return ExportError(
        f"text encoder: its tokenizer ({kind}) is none that {program} has, which are {has}; name a "
        "TEXT_MODEL with one of these, or run 'make export' with FORMAT=opensearch or FORMAT=djl, whose "
        "programs read any tokenizer.json"
    )


def _tokens(definition: str, special: tuple[str, ...]) -> tuple[str, ...] | None:
    """The vocabulary by id; None where ids are left out, or tokens are added that are no special ones."""
    tokenizer = tokenizers.Tokenizer.from_str(definition)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        return None
    return tuple(tokens) if added <= set(special) <= ids.keys() else None


def _around(definition: str, first: str, last: str) -> bool:
    """Whether these two tokens are put around a text."""
    return bool(tokenizers.Tokenizer.from_str(definition).encode("").tokens == [first, last])
