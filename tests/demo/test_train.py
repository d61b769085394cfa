"""The training recipe in two steps: it writes loadable checkpoints, and goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from demo import train

SHIPPED = Path(train.__file__).parent / "checkpoint"
LIMIT = 16_000_000  # bytes of both checkpoints together


def run(folder: Path, steps: int) -> int:
    return train.main(
        ["--out", str(folder / "out"), "--work", str(folder / "work"),
         "--teacher-steps", str(steps), "--student-steps", str(steps)]
    )  # fmt: skip


# The DataLoader's worker process is forked from a test process that has threads.
@pytest.mark.full
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_training_resumes_with_the_tokenizer_it_began_with(tmp_path: Path) -> None:
    assert run(tmp_path, 2) == 0
    vocabulary = tmp_path / "out" / "multilingual" / "vocab.txt"
    before = vocabulary.read_bytes()
    first = SentenceTransformer(str(tmp_path / "out" / "multilingual"), device="cpu")
    # Training a WordPiece tokenizer again breaks ties differently: the ids would no longer be the model's.
    assert run(tmp_path, 3) == 0
    assert vocabulary.read_bytes() == before
    second = SentenceTransformer(str(tmp_path / "out" / "multilingual"), device="cpu")
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
    for name, dim in (("clip", 512), ("multilingual", 512)):
        model = SentenceTransformer(str(tmp_path / "out" / name), device="cpu")
        assert model.encode(["two dogs in the snow"]).shape == (1, dim)


@pytest.mark.parametrize("name", ["clip", "multilingual"])
def test_shipped_checkpoint_loads_as_float32(name: str) -> None:
    model = SentenceTransformer(str(SHIPPED / name), device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_shipped_checkpoint_is_small_and_without_pickles() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert {path.suffix for path in files} <= {".json", ".txt", ".safetensors", ".md"}
