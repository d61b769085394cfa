"""Tokenizers that people have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceProcessor

from clipserve.tokens import Tokenizer
from export_scripts.checkpoints import text
from standins import checkpoints as writing
from standins import tokenizers
from tests.export_scripts.checkpoints.edits import (
    Change,
    Vary,
    agrees,
    clip_tokenizer,
    edit_json,
    edit_tensors,
    remove,
    text_refusal,
)


@pytest.mark.parametrize(
    ("fixture", "files"),
    [("multilingual_folder", ["tokenizer.json", "vocab.txt"]), ("m_clip_bert_folder", ["vocab.txt"])],
)
def test_missing_vocabulary_is_refused(
    fixture: str, files: list[str], vary: Vary, request: pytest.FixtureRequest
) -> None:
    """transformers makes up a tokenizer that knows no word."""
    assert "tokenizer" in text_refusal(vary(request.getfixturevalue(fixture), remove(*files)))


def only_sentencepiece(content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / "sentencepiece.bpe.model").write_bytes(content)

    return change


@pytest.fixture(scope="session")
def sentencepiece_model() -> bytes:
    return tokenizers.sentencepiece_model()


@pytest.mark.parametrize("student", [True, False], ids=["student", "m-clip"])
def test_sentencepiece_model_alone(
    student: bool, sentencepiece_model: bytes, m_clip_xlm_roberta_folder: Path, tmp_path: Path, vary: Vary
) -> None:
    """CASES 28: SentencePiece's own ids, moved by the one place that XLM-R's special tokens take."""
    original = SentencePieceProcessor(model_proto=sentencepiece_model)
    source = (
        writing.write_student(tmp_path / "source" / "student", "xlm-roberta")
        if student
        else m_clip_xlm_roberta_folder
    )
    text = agrees(vary(source, only_sentencepiece(sentencepiece_model)))
    tokenizer = Tokenizer(text.tokenizer, text.preprocessing)
    for sentence in tokenizers.corpus()[::7]:
        pieces = original.encode(sentence)
        expected = (0, *(3 if piece == 0 else piece + 1 for piece in pieces), 2)
        assert tokenizer.tokenize(sentence).ids == expected, sentence


@pytest.mark.parametrize("content", [b"", b"no model", b"\n\x0c\x00"], ids=len)
def test_sentencepiece_model_that_is_none(
    content: bytes, m_clip_xlm_roberta_folder: Path, vary: Vary
) -> None:
    """CASES 28: transformers would ask for tiktoken."""
    message = text_refusal(vary(m_clip_xlm_roberta_folder, only_sentencepiece(content)))
    assert "not a SentencePiece model" in message
    assert "tiktoken" not in message


def test_sentencepiece_is_not_installed(
    sentencepiece_model: bytes, m_clip_xlm_roberta_folder: Path, vary: Vary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES 28: one true sentence."""
    monkeypatch.setattr(text, "is_sentencepiece_available", lambda: False)
    message = text_refusal(vary(m_clip_xlm_roberta_folder, only_sentencepiece(sentencepiece_model)))
    assert "pip install sentencepiece protobuf" in message
    assert "tiktoken" not in message


def added_token(name: str, identifier: int) -> Change:
    """Adds a token to a `tokenizer.json`, as `tokenizer.add_tokens` and saving do."""

    def change(folder: Path) -> None:
        path = folder / name
        definition = json.loads(path.read_text())
        definition["added_tokens"].append(
            {
                "id": identifier, "content": "<dogs>", "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": False,
            }
        )  # fmt: skip
        path.write_text(json.dumps(definition))

    return change


def test_added_token_without_a_row(
    multilingual_folder: Path, m_clip_bert_folder: Path, clip_folder: Path, vary: Vary
) -> None:
    """CASES 3: a text with it would raise inside the batch of everybody else."""
    message = text_refusal(vary(multilingual_folder, added_token("tokenizer.json", 2000)))
    for word in ("'<dogs>'", "largest token id is 2000", "2000 rows", "resize_token_embeddings"):
        assert word in message
    for folder, change, rows in (
        (m_clip_bert_folder, edit_json("tokenizer_config.json", extra_special_tokens=["<dogs>"]), 2000),
        (clip_folder, clip_tokenizer(extra_special_tokens=["<dogs>"]), 600),
    ):
        message = text_refusal(vary(folder, change))
        assert f"largest token id is {rows} ('<dogs>'), the embedding table has {rows} rows" in message


def test_added_token_with_a_row(multilingual_folder: Path, vary: Vary) -> None:
    """CASES 3: a resized table takes it; the highest id is one less than the rows."""

    def change(folder: Path) -> None:
        added_token("tokenizer.json", 2000)(folder)
        edit_json("config.json", vocab_size=2001)(folder)
        edit_tensors("model.safetensors", add_row)(folder)

    def add_row(tensors: dict[str, torch.Tensor]) -> None:
        name = "embeddings.word_embeddings.weight"
        tensors[name] = torch.cat([tensors[name], torch.ones(1, 48)])

    text = agrees(vary(multilingual_folder, change))
    assert text.preprocessing.vocabulary_size == 2001
    assert Tokenizer(text.tokenizer, text.preprocessing).tokenize("<dogs>").ids[1] == 2000
