"""What eland and opensearch-py-ml make of a checkpoint themselves, beside ours: `make test-exporters`.

The original is sentence-transformers of their environment, in PyTorch 2.7.1.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from clipserve.encoder_spec import FloatArray
from clipserve.similarity import unit_vectors
from export_scripts.export import main as export
from standins.checkpoints import (
    DISTILBERT_MULTILINGUAL,
    TINY_TEXT,
    XLM_R_LARGE,
    write_multilingual,
    write_student,
)
from standins.tokenizers import sentencepiece_model

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PYTHON = ROOT / ".venv-exporters" / "bin" / "python"

# Of 2 to 92 tokens of WordPiece, and of 182, 362 and 722; of Unigram fewer. The original is cut at 128.
SHORT = ["két kutya a hóban", "Two dogs in the snow", "雪の中の二匹の犬", "x", ""]
SHORT += [" ".join(["két kutya a hóban"] * count) for count in (5, 10)]
LONG = [" ".join(["két kutya a hóban"] * count) for count in (20, 40, 80)]

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not PYTHON.is_file(), reason="no .venv-exporters; run 'make test-exporters'"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn.functional"),
]


def run(script: str, *words: object) -> None:
    """Runs a script of this folder in the exporters' environment; no hub is asked."""
    subprocess.run(
        [str(PYTHON), "-W", "ignore", str(HERE / script), *map(str, words)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=True,
    )


def distilbert(folder: Path) -> Path:
    """With positions enough for what eland lets through."""
    return write_multilingual(folder, replace(TINY_TEXT, positions=DISTILBERT_MULTILINGUAL.positions))


def xlm_r(folder: Path) -> Path:
    """Likewise, with the SentencePiece model that eland reads its vocabulary from."""
    shape = replace(TINY_TEXT, positions=XLM_R_LARGE.positions)
    write_student(folder, "xlm-roberta", shape=shape)
    (folder / "tokenizer.json").unlink()
    (folder / "sentencepiece.bpe.model").write_bytes(sentencepiece_model())
    return folder


@dataclass(frozen=True)
class Exports:
    """What came of one checkpoint.

    Attributes:
        vectors: unit vectors of `SHORT` and `LONG` by each file, called as its engine calls it, and by the
            original.
        elands, ours: folders for Elasticsearch.
    """

    vectors: dict[str, FloatArray]
    elands: Path
    ours: Path


@pytest.fixture(scope="module", params=[distilbert, xlm_r], ids=lambda write: write.__name__)
def exports(
    clip_folder: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Exports:
    work = tmp_path_factory.mktemp("exports")
    checkpoint = request.param(work / "checkpoint")
    texts = work / "texts.json"
    texts.write_text(json.dumps([*SHORT, *LONG]), encoding="utf-8")
    run("their_exports.py", checkpoint, texts, work)
    for name in ("opensearch", "elasticsearch"):
        words = ["--model", str(clip_folder), "--text-model", str(checkpoint)]
        assert export([*words, "--format", name, "--store", str(work)]) == 0
    [archive] = (work / "opensearch").glob("*.zip")
    [folder] = (work / "elasticsearch").iterdir()
    files = {
        "eland": ("elasticsearch", work / "eland"),
        "ours for Elasticsearch": ("elasticsearch", folder),
        "opensearch-py-ml": ("opensearch", work / "opensearch-py-ml.zip"),
        "ours for OpenSearch": ("opensearch", archive),
    }
    found = {"original": unit_vectors(np.load(work / "original.npy"))}
    for name, (engine, path) in files.items():
        run("as_engines.py", engine, path, texts, work / "vectors.npy")
        found[name] = unit_vectors(np.load(work / "vectors.npy"))
        off = np.abs(found[name] - found["original"]).max(axis=1)
        print(f"{name}: short texts {off[: len(SHORT)].max():.1e}, long {off[len(SHORT) :].max():.1e}")
    return Exports(found, work / "eland", folder)


@pytest.mark.parametrize("name", ["ours for Elasticsearch", "ours for OpenSearch", "opensearch-py-ml"])
def test_texts_of_any_length(exports: Exports, name: str) -> None:
    np.testing.assert_allclose(exports.vectors[name], exports.vectors["original"], rtol=0, atol=1e-5)


def test_elands_are_right_up_to_128_tokens(exports: Exports) -> None:
    """It writes `max_sequence_length` 512, where the original cuts at 128."""
    off = np.abs(exports.vectors["eland"] - exports.vectors["original"]).max(axis=1)
    assert off[: len(SHORT)].max() <= 1e-5
    # Of Unigram's tokens the shortest of them may have no more.
    assert off[-1] > 1e-3


def test_the_same_vocabulary(exports: Exports) -> None:
    """Elasticsearch's tokenizer gets from us what it gets from eland, scores included."""
    theirs, ours = (
        json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        for folder in (exports.elands, exports.ours)
    )
    assert ours.pop("scores", []) == pytest.approx(theirs.pop("scores", []))
    assert ours == theirs
