"""From a text to token ids, with the checkpoint's own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tokenizers

from clipserve.encoder_spec import sha256
from clipserve.errors import SpecError
from clipserve.preprocessing import TextPreprocessing

TokenArray = npt.NDArray[np.int64]


# What a forward pass costs beside its tokens, in tokens: the multilingual DistilBERT in full size on one core
# takes as long for one text of 16 tokens as for 26 tokens of a large batch, in float32 and in bf16.
PASS_TOKENS = 10

# Lengths of passes are multiples of it: counted in tokens and passes, captions of 4 to 77 tokens in batches
# of 1 to 128 cost 4 to 11 % more than in passes of any lengths. With 1 it is up to 15 %, with 8 from 9 to 15.
LENGTH_STEP = 4


@dataclass(frozen=True)
class Tokens:
    """The tokens of one text.

    Attributes:
        ids: token ids, special tokens included, at most the context length.
        truncated: whether the text had more tokens than the context length admits.
        unknown: how many tokens stand for something that the vocabulary does not have.
    """

    ids: tuple[int, ...]
    truncated: bool
    unknown: int


class Tokenizer:
    """The tokenizer inside a text encoder's file.

    Args:
        definition: text of a `tokenizer.json`.
        preprocessing: the text section of the encoder's spec.

    Attributes:
        context_length: the most tokens of a text.
        largest_id: that a text can become.

    Raises:
        SpecError: `definition` is not the one that the spec was written for, or makes ids that the encoder's
            embedding table has no row for.
    """

    def __init__(self, definition: str, preprocessing: TextPreprocessing):
        found = sha256(definition.encode("utf-8"))
        if found != preprocessing.tokenizer_sha256:
            raise SpecError(
                f"tokenizer: SHA-256 {found[:12]}…, the spec says "
                f"{preprocessing.tokenizer_sha256[:12]}…; run 'make export' again"
            )
        self.context_length = preprocessing.context_length
        self._preprocessing = preprocessing
        self._tokenizer = tokenizers.Tokenizer.from_str(definition)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=preprocessing.context_length)
        self.largest_id = largest_token_id(self._tokenizer)
        if self.largest_id >= preprocessing.vocabulary_size:
            raise SpecError(
                f"tokenizer: its largest token id is {self.largest_id}, the encoder's embedding table has "
                f"{preprocessing.vocabulary_size} rows; run 'make export' again"
            )
        model = json.loads(definition)["model"]
        # Unigram names the id, WordPiece and BPE the token.
        self._unknown_id: int | None = model.get("unk_id")
        if self._unknown_id is None and model.get("unk_token") is not None:
            self._unknown_id = self._tokenizer.token_to_id(model["unk_token"])

    def tokenize(self, text: str) -> Tokens:
        """Tokens of one text; an empty or blank text has the special tokens only."""
        encoding = self._tokenizer.encode(text)
        # CLIP's byte-level BPE names its end token as unknown token too: special tokens do not count.
        unknown = sum(
            token == self._unknown_id and not special
            for token, special in zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        )
        return Tokens(tuple(encoding.ids), bool(encoding.overflowing), unknown)

    def pad(self, rows: Sequence[Sequence[int]], length: int | None = None) -> tuple[TokenArray, TokenArray]:
        """Pads token ids: `input_ids` and `attention_mask`, int64 `[N, L]`.

        Args:
            length: tokens of each row; None takes as many as the longest has, or as the encoder wants.
        """
        if length is None:
            length = self._preprocessing.padded(max(len(ids) for ids in rows))
        input_ids = np.full((len(rows), length), self._preprocessing.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros((len(rows), length), dtype=np.int64)
        for row, ids in enumerate(rows):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return input_ids, attention_mask

    def padded(self, tokens: int) -> int:
        """Tokens of each row in a pass of texts that have so many: a few more, so that passes are fewer."""
        return self._preprocessing.padded(min(-(-tokens // LENGTH_STEP) * LENGTH_STEP, self.context_length))


def largest_token_id(tokenizer: tokenizers.Tokenizer) -> int:
    """The largest id that any text can become, added and special tokens included.

    The special tokens' ids stand in the post-processor a second time, and need not be the vocabulary's.
    """
    return max(*tokenizer.get_vocab(with_added_tokens=True).values(), *tokenizer.encode("").ids, 0)


def length_groups(lengths: Sequence[int], max_batch: int) -> list[list[int]]:
    """Divides texts into forward passes of one length each, the shortest first.

    A sum over more tokens adds in another order, even where those behind a text are masked: in a pass with
    longer ones a text would have a vector of other last digits; where activations are rounded to int8, one
    level becomes the next.

    Args:
        lengths: tokens of each text, as a pass of its own pads it.
        max_batch: the most texts of one pass.

    Returns:
        Indices into `lengths`, each once, in groups of at most `max_batch`.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    groups: list[list[int]] = []
    for index in order:
        if not groups or len(groups[-1]) == max_batch or lengths[groups[-1][0]] != lengths[index]:
            groups.append([])
        groups[-1].append(index)
    return groups
