"""open_clip's tokenizers: OpenAI's byte-level BPE, or one of transformers behind open_clip's cleaning."""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import transformers
from tokenizers import Tokenizer, normalizers
from torch import Tensor

from clipserve.errors import ExportError
from export_scripts.checkpoints.cleaning import (
    DOUBLE_QUOTES,
    LOWER_CASE,
    MENDED,
    MENDING,
    REMOVED,
    SINGLE_BLANKS,
    SINGLE_QUOTES,
    WITHOUT_PUNCTUATION,
)
from export_scripts.checkpoints.open_clip.config import Config
from export_scripts.checkpoints.reading import in_our_words
from export_scripts.checkpoints.text import (
    TOKENIZER_JSON,
    as_transformers,
    check_sentencepiece,
    check_vocabulary,
)
from export_scripts.checkpoints.two_towers import Texts


@dataclass(frozen=True)
class Cleaning:
    """What is done to a text first: twice, as steps of a `tokenizer.json` and by Python itself."""

    steps: Sequence[normalizers.Normalizer]
    original: Callable[[str], str]


def _canonical(text: str) -> str:
    return text.replace("_", " ").translate(str.maketrans("", "", string.punctuation)).lower()


CLEANING = {
    "lower": Cleaning((*SINGLE_BLANKS, *LOWER_CASE), str.lower),
    "whitespace": Cleaning(SINGLE_BLANKS, str),
    "canonicalize": Cleaning(
        (normalizers.Replace("_", " "), WITHOUT_PUNCTUATION, *LOWER_CASE, *SINGLE_BLANKS), _canonical
    ),
}


def _mended(text: str) -> str:
    text = text.translate({ord(character): plain for character, plain in MENDED.items()})
    text = re.sub(REMOVED, "", re.sub(DOUBLE_QUOTES, '"', re.sub(SINGLE_QUOTES, "'", text)))
    return unicodedata.normalize("NFC", text)


def read_texts(config: Config) -> Texts:
    """How a folder's texts become tokens.

    Raises:
        ExportError: it has no tokenizer, or one that is not supported.
    """
    folder, section = config.folder, config.text
    named = bool(section.values.get("hf_tokenizer_name"))
    kwargs = section.values.get("tokenizer_kwargs") or {}
    cleaning = CLEANING.get(kwargs.get("clean", "whitespace" if named else "lower"))
    if not kwargs.keys() <= {"clean", "strip_sep_token"} or cleaning is None:
        raise section.refusal("tokenizer_kwargs", *({"clean": name} for name in CLEANING))
    if section.values.get("tokenizer_mode"):
        raise section.refusal("tokenizer_mode", None)
    check_vocabulary(folder)
    check_sentencepiece(folder)
    with in_our_words(folder, "transformers cannot load its tokenizer"):
        original: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        path = folder / TOKENIZER_JSON
        backend = Tokenizer.from_file(str(path)) if path.is_file() else original.backend_tokenizer
        definition = json.loads(backend.to_str())
        end = original.sep_token_id if kwargs.get("strip_sep_token") else None
        if end is not None:
            # CLIPA's end is a zero, which is padding.
            for special in definition["post_processor"]["special_tokens"].values():
                special["ids"] = [0 if number == end else number for number in special["ids"]]
        backend = Tokenizer.from_str(json.dumps(definition))
    if not named and not isinstance(original, transformers.CLIPTokenizer):
        raise ExportError(
            f"{folder}: a {type(original).__name__}, where open_clip takes OpenAI's tokenizer without "
            f"hf_tokenizer_name in {section.path}; put the tokenizer files of a CLIP into this folder"
        )
    first = [backend.normalizer] if named and backend.normalizer else []
    backend.normalizer = normalizers.Sequence([*MENDING, *cleaning.steps, *first])
    return Texts(as_transformers(backend, original), partial(_padded, original, cleaning, end))


def _padded(
    tokenizer: Any, cleaning: Cleaning, end: int | None, texts: Sequence[str], length: int
) -> tuple[Tensor, Tensor]:
    cleaned = [" ".join(cleaning.original(_mended(text)).split()) for text in texts]
    tokens = tokenizer(cleaned, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    ids: Tensor = tokens["input_ids"]
    return ids if end is None else ids.masked_fill(ids == end, 0), tokens["attention_mask"]
