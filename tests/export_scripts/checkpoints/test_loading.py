"""Every layout is told from the others and loaded; names, and what is not to be had."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export_scripts.checkpoints import hub, loading
from export_scripts.checkpoints.loading import load_pair, load_text_checkpoint
from export_scripts.encoders.supported import FAMILIES
from standins import checkpoints as writing
from tests.export_scripts.checkpoints.edits import image_refusal, pair_refusal, text_refusal


@pytest.mark.parametrize(
    ("fixture", "context_length", "pad_token_id"),
    [("multilingual_folder", 128, 0), ("m_clip_bert_folder", 140, 0), ("m_clip_xlm_roberta_folder", 138, 1)],
)
def test_text_layouts(
    fixture: str, context_length: int, pad_token_id: int, request: pytest.FixtureRequest
) -> None:
    text = load_text_checkpoint(request.getfixturevalue(fixture), "a name")
    assert (text.name, text.embedding_dim) == ("a name", 32)
    assert (text.preprocessing.context_length, text.preprocessing.pad_token_id) == (
        context_length,
        pad_token_id,
    )
    embeddings = text.reference_encode(["Two dogs in the snow", "雪", "x " * 500])
    assert embeddings.shape == (3, 32)
    assert embeddings.dtype == np.float32
    # The originals do not normalise.
    assert np.abs(np.linalg.norm(embeddings, axis=1) - 1).max() > 0.01


@pytest.mark.parametrize(
    "fixture", ["clip_folder", "multilingual_folder", "m_clip_bert_folder", "m_clip_xlm_roberta_folder"]
)
def test_every_text_layout_pairs_with_the_image_encoder(
    fixture: str, clip_folder: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(fixture)
    pair = load_pair(str(clip_folder), str(folder))
    assert (pair.model_id, pair.text.name) == ("clip", folder.name)


def test_names_and_model_ids(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spec says a checkpoint's name and never where somebody keeps it."""
    folder = tmp_path / "my clip (v2)"
    shutil.copytree(clip_folder, folder)
    pair = load_pair(f"{folder}/")
    assert (pair.model_id, pair.image.name) == ("my-clip-v2-", "my clip (v2)")
    monkeypatch.chdir(folder)
    assert load_pair(".").image.name == "my clip (v2)"


def test_empty_text_model_is_none(clip_folder: Path) -> None:
    """As `make export TEXT_MODEL=` gives it."""
    assert load_pair(str(clip_folder), "").text.name == "clip"


def test_published_text_encoder_of_a_published_image_encoder(
    clip_folder: Path, multilingual_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, **options: Any) -> str:
        asked.append(repository)
        return str(multilingual_folder if "multilingual" in repository else clip_folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    pair = load_pair("clip-ViT-B-32")
    assert list(dict.fromkeys(asked)) == [
        "sentence-transformers/clip-ViT-B-32",
        "sentence-transformers/clip-ViT-B-32-multilingual-v1",
    ]
    assert (pair.model_id, pair.image.name, pair.text.name) == (
        "clip-ViT-B-32", "clip-ViT-B-32", "clip-ViT-B-32-multilingual-v1",
    )  # fmt: skip
    # Of others its own text tower, and another one by its full name.
    assert load_pair("clip-ViT-L-14").text.name == "clip-ViT-L-14"
    assert load_pair("clip-ViT-L-14", "M-CLIP/multilingual").text.name == "M-CLIP/multilingual"
    assert asked[-1] == "M-CLIP/multilingual"


def test_demo_is_in_the_repository(
    clip_folder: Path, multilingual_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "DEMO_IMAGE", clip_folder)
    monkeypatch.setattr(loading, "DEMO_TEXT", multilingual_folder)
    pair = load_pair("demo")
    assert (pair.model_id, pair.image.name, pair.text.name) == ("demo", "demo", "demo")
    assert pair.text.preprocessing.context_length == 128
    assert loading.DEMO_IMAGE != loading.DEMO_TEXT


def test_no_pair_of_one_size(clip_folder: Path, tmp_path: Path) -> None:
    shape = writing.TextShape(48, 2, 2, 2000, 140, embedding_dim=64)
    message = pair_refusal(str(clip_folder), str(writing.write_multilingual(tmp_path / "wide", shape)))
    assert "32-d" in message
    assert "wide 64-d" in message
    assert "TEXT_MODEL" in message


def test_text_checkpoints_have_no_image_encoder(multilingual_folder: Path, m_clip_bert_folder: Path) -> None:
    for folder in (multilingual_folder, m_clip_bert_folder):
        message = image_refusal(folder)
        said = re.fullmatch(r".*: not a (.+) or (.+) checkpoint, so it has no image encoder", message)
        assert said is not None
        names = [*said[1].split(", "), said[2]]
        assert sorted(names) == sorted(family.name for family in FAMILIES.values())
        assert {"Chinese-CLIP", "CLIP", "MetaCLIP 2", "SigLIP"} <= {*names}


def test_empty_folder(tmp_path: Path) -> None:
    assert "not a CLIP checkpoint" in pair_refusal(str(tmp_path)) or "cannot load" in pair_refusal(
        str(tmp_path)
    )
    assert "not a readable checkpoint config" in text_refusal(tmp_path)
