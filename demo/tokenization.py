"""Trains the tokenizers of the demo's models on their captions, and writes them as the originals' files."""

from __future__ import annotations

import json
import string
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, DistilBertTokenizer

from demo.captions import caption, load_vocabularies
from demo.layouts import write_clip_tokenizer_files
from demo.models import MAX_TOKENS
from demo.world import trained_scenes


def train_english_tokenizer(folder: Path) -> None:
    """Writes CLIP's `vocab.json` and `merges.txt` for a byte-level BPE of the English captions."""
    english = load_vocabularies()["en"]
    texts = [text for scene in trained_scenes() for text in english.captions(scene)]
    tokenizer = CLIPTokenizer().backend_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator([*texts, *english.phrases()], trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    # As in CLIP, every byte is a token both inside and at the end of a word, so that any text has one.
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet), *map("".join, merges)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    write_clip_tokenizer_files(
        folder, vocab, map(" ".join, merges), {"model_max_length": MAX_TOKENS["teacher"]}
    )


def train_multilingual_tokenizer(folder: Path) -> None:
    """Writes a WordPiece tokenizer of all languages' captions in DistilBERT's files.

    Capitals carry no meaning in captions, so lower-casing keeps the vocabulary small. Accents stay: without
    them Hindi, Bengali and Thai would lose their vowel signs and Vietnamese its tones.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.BertNormalizer(lowercase=True, strip_accents=False)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rng = Random(0)
    texts = []
    for vocabulary in load_vocabularies().values():
        if vocabulary.code == "th":
            # Thai puts no spaces between words, so that whole captions would become tokens. A phrase
            # comes alone and behind a letter instead, to be learnt as a word's head and as its tail.
            phrases = [p for p in vocabulary.phrases() if p not in vocabulary.example]
            texts += [*phrases, *("x" + phrase for phrase in phrases)]
        else:
            texts += vocabulary.phrases()
            texts += [caption(vocabulary, s, rng) for s in trained_scenes() for _ in range(8)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=7000, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab = tokenizer.get_vocab()
    # Every letter can begin and continue a word, so that free text has few unknown words.
    letters = sorted({*"".join(texts).lower(), *string.ascii_lowercase, *string.digits, "İ".lower()[1]})
    both = [form for letter in letters if letter.strip() for form in (letter, "##" + letter)]
    tokens = dict.fromkeys([*sorted(vocab, key=lambda token: vocab[token]), *both])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*tokens, ""]), encoding="utf-8")
    DistilBertTokenizer(
        str(folder / "vocab.txt"), do_lower_case=True, strip_accents=False,
        model_max_length=MAX_TOKENS["student"],
    ).save_pretrained(folder)  # fmt: skip
