"""The text side that all layouts have: a tower, its tokenizer, and the original to compare with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

from clipserve.encoder_spec import FloatArray, sha256
from clipserve.errors import ExportError
from clipserve.preprocessing import TextPreprocessing
from clipserve.tokens import largest_token_id
from export_scripts.checkpoints.pair import TextCheckpoint
from export_scripts.encoders.layers import last_stage
from export_scripts.encoders.towers import TextTower
from export_scripts.identity import text_sha256, used_weights, weights_sha256

TOKENIZER_JSON, SENTENCEPIECE = "tokenizer.json", "sentencepiece.bpe.model"
VOCABULARY_FILES = (TOKENIZER_JSON, "vocab.txt", "vocab.json", SENTENCEPIECE)


def check_vocabulary(folder: Path) -> None:
    """Checks that there is a vocabulary, without which transformers makes up a tokenizer that knows no word.

    Raises:
        ExportError: there is none.
    """
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise ExportError(f"{folder}: no tokenizer; it should have one of {', '.join(VOCABULARY_FILES)}")


def check_sentencepiece(folder: Path) -> None:
    """Checks that a SentencePiece model that stands alone can be read; see `check_sentencepiece_file`."""
    path = folder / SENTENCEPIECE
    if path.is_file() and not (folder / TOKENIZER_JSON).is_file():
        check_sentencepiece_file(path)


def check_sentencepiece_file(path: Path) -> None:
    """Checks that a SentencePiece model can be read.

    transformers takes one that it cannot read for a tiktoken file, and asks for that library.

    Raises:
        ExportError: the library is not installed, or the file is no such model.
    """
    if not (is_sentencepiece_available() and is_protobuf_available()):
        raise ExportError(
            f"{path}: the packages sentencepiece and protobuf are needed to convert this tokenizer; run "
            "'pip install sentencepiece protobuf'"
            f"{', or put its tokenizer.json beside it' if path.name == SENTENCEPIECE else ''}"
        )
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ExportError(
            f"{path}: {'not a' if path.is_file() else 'missing, a'} SentencePiece model"
        ) from error


def as_transformers(backend: Tokenizer, original: Any) -> Any:
    """Another `tokenizers` form, with what transformers keeps beside that of the `original`."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=original.pad_token,
        padding_side=original.padding_side,
        truncation_side=original.truncation_side,
    )


def length_limit(max_length: Any) -> int:
    """The most tokens that a tokenizer or a sentence-transformers configuration admits; None is no limit."""
    return sys.maxsize if max_length is None else int(max_length)


def text_checkpoint(
    name: str,
    tower: TextTower,
    tokenizer: Any,
    context_length: int,
    folder: Path,
    reference: Callable[[Tensor, Tensor], FloatArray],
    reference_encode: Callable[[Sequence[str]], FloatArray],
    *,
    image_weights_sha256: str | None = None,
) -> TextCheckpoint:
    """The text side of a pair.

    Args:
        tokenizer: as transformers loads it.
        context_length: the most tokens that it and the tower admit.
        folder: of the checkpoint, for messages.
        name, reference, reference_encode, image_weights_sha256: see `TextCheckpoint`.

    Raises:
        ExportError: the tokenizer is of no supported kind, or does not belong to the tower.
    """
    definition, preprocessing = _tokenizer(tokenizer, context_length, tower, folder)
    architecture = tower.architecture.with_tokenizer(definition, preprocessing, folder)
    weights = weights_sha256(used_weights(*tower.parts))
    # The first part is transformers' own.
    original: Any = tower.parts[0]
    return TextCheckpoint(
        name=name,
        embedding_dim=tower.embedding_dim,
        weights_sha256=weights,
        checkpoint_sha256=text_sha256(architecture, weights, preprocessing, definition),
        image_weights_sha256=image_weights_sha256,
        preprocessing=preprocessing,
        tokenizer=definition,
        config=original.config.to_dict(),
        reference=reference,
        reference_encode=reference_encode,
        build=lambda normalized: tower.build(last_stage(normalized)),
    )


def _tokenizer(
    tokenizer: Any, context_length: int, tower: TextTower, folder: Path
) -> tuple[str, TextPreprocessing]:
    """`tokenizer.json` of a fast tokenizer; converted by transformers where only older files exist."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(f"{folder}: its tokenizer has no 'tokenizers' form")
    for setting, supported in (
        ("padding_side", "right"),
        ("truncation_side", "right"),
        # Steers the library from outside: the tokenizer's own definition does not say it.
        ("split_special_tokens", False),
    ):
        if getattr(tokenizer, setting, supported) != supported:
            raise ExportError(
                f"{folder}: {setting} {getattr(tokenizer, setting)!r} in tokenizer_config.json; supported is "
                f"{supported}"
            )
    backend.no_padding()
    backend.no_truncation()
    special = backend.num_special_tokens_to_add(False)
    if context_length <= special:
        raise ExportError(
            f"{folder}: a length of {context_length} tokens (max_seq_length or model_max_length), of which "
            f"{special} are special ones, leaves no room for a text"
        )
    if tokenizer.pad_token_id is None:
        raise ExportError(f"{folder}: its tokenizer has no padding token; name it in tokenizer_config.json")
    largest = max(largest_token_id(backend), tokenizer.pad_token_id)
    if largest >= tower.vocabulary_size:
        raise ExportError(
            f"{folder}: the tokenizer's largest token id is {largest} "
            f"({backend.id_to_token(largest)!r}), the embedding table has {tower.vocabulary_size} rows: a "
            "text with that token would fail; resize the table (resize_token_embeddings) or take it out"
        )
    definition = backend.to_str()
    return definition, TextPreprocessing(
        context_length=context_length,
        vocabulary_size=tower.vocabulary_size,
        pad_token_id=tokenizer.pad_token_id,
        tokenizer_sha256=sha256(definition.encode("utf-8")),
        padding=tower.padding,
    )
