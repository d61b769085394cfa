"""SigLIP and SigLIP 2 of a fixed resolution, as transformers saves them.

What both were trained with, and what their tokenizers leave out or to the caller:

| | SigLIP | SigLIP 2 |
|---|---|---|
| a text is | lower-cased, without ASCII punctuation, of single blanks | lower-cased |
| tokens | SentencePiece, `spiece.model` | Gemma's BPE, `tokenizer.json` |
| padded | to 64 tokens, and the padding is seen | the same |

big_vision trained them so (`pp/ops_text.py`, and the notebook of SigLIP 2), but for two things: its `lower`
knows ASCII only, where here and in transformers every script is lowered, and punctuation it strips where it
evaluates, which transformers' `SiglipTokenizer` always does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from clipserve.errors import ExportError
from export_scripts.checkpoints.cleaning import LOWER_CASE, SINGLE_BLANKS, WITHOUT_PUNCTUATION
from export_scripts.checkpoints.reading import read_json
from export_scripts.checkpoints.text import as_transformers, check_sentencepiece_file
from export_scripts.checkpoints.two_towers import Texts

SENTENCEPIECE = "spiece.model"

CANONICAL = (*LOWER_CASE, WITHOUT_PUNCTUATION, *SINGLE_BLANKS)


def load_texts(folder: Path) -> Texts:
    """How its texts become tokens.

    Raises:
        ExportError: its tokenizer is of no supported kind.
    """
    if read_json(folder / "tokenizer_config.json").get("tokenizer_class") == "SiglipTokenizer":
        check_sentencepiece_file(folder / SENTENCEPIECE)
    original: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if isinstance(original, transformers.SiglipTokenizer):
        if not original.do_lower_case:
            raise ExportError(f"{folder}: do_lower_case false in tokenizer_config.json is not supported")
        backend = _unigram(folder / SENTENCEPIECE, original.eos_token)
        # transformers' own does to a text what it was trained with.
        return Texts(as_transformers(backend, original), partial(_padded, original))
    if isinstance(original, transformers.GemmaTokenizer):
        backend = Tokenizer.from_str(original.backend_tokenizer.to_str())
        backend.normalizer = normalizers.Sequence([*LOWER_CASE, backend.normalizer])
        return Texts(as_transformers(backend, original), partial(_padded, original, prepare=str.lower))
    raise ExportError(
        f"{folder}: a SigLIP with a {type(original).__name__} is not supported; supported are "
        "SiglipTokenizer and GemmaTokenizer"
    )


def _padded(
    tokenizer: Any, texts: Sequence[str], length: int, prepare: Callable[[str], str] = str
) -> tuple[Tensor, Tensor]:
    """Tokens as transformers gives them; of SigLIP's nobody looks at a mask."""
    tokens = tokenizer(
        [prepare(text) for text in texts],
        padding="max_length",
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )["input_ids"]
    return tokens, tokens


def _unigram(path: Path, eos_token: str) -> Tokenizer:
    """A SentencePiece model as SigLIP's, in the form of `tokenizers`, behind what SigLIP does to a text."""
    # Generated, so that no checker knows what is in it.
    from sentencepiece import sentencepiece_model_pb2 as generated

    proto: Any = vars(generated)["ModelProto"].FromString(path.read_bytes())
    trained = proto.trainer_spec
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    made = Tokenizer(models.Unigram(pieces, trained.unk_id, byte_fallback=trained.byte_fallback))
    spelling = proto.normalizer_spec.precompiled_charsmap
    precompiled = [normalizers.Precompiled(spelling)] if spelling else []
    made.normalizer = normalizers.Sequence([*CANONICAL, *precompiled])
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    made.add_special_tokens([eos_token, trained.unk_piece])
    made.post_processor = processors.TemplateProcessing(
        single=f"$A {eos_token}", special_tokens=[(eos_token, made.token_to_id(eos_token))]
    )
    return made
