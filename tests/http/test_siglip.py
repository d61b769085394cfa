"""A SigLIP 2 behind a real server: its vectors, whatever they are asked together with, and its scores."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GemmaTokenizer, SiglipImageProcessorPil, SiglipModel

from clipserve.client import Client, Management
from export_scripts.export import export_pair
from export_scripts.packages.archive import build_archives
from tests.http.api import AnyServer, Api, picture
from tests.http.conftest import serving

# A server of its own: half a minute.
pytestmark = pytest.mark.full

TEXTS = [
    "Two Dogs in the SNOW!",
    "",
    "Két kutya a hóban",
    "ΔΎΟ ΣΚΎΛΟΙ",
    "雪の中の二匹の犬",
    "a cat " * 90,
    "x",
    "y",
]
PICTURES = [picture(i) for i in range(3)]


@pytest.fixture(scope="module")
def siglip(
    siglip_2_folder: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[AnyServer]:
    store = tmp_path_factory.mktemp("siglip")
    export_pair(str(siglip_2_folder), None, "cpu", "fp32", store)
    build_archives(store, None, None)
    with serving(store, tmp_path_factory.mktemp("siglip-server"), pytestconfig) as server:
        yield server


@pytest.fixture
def client(siglip: AnyServer) -> Iterator[Client]:
    with siglip.client() as client:
        yield client


@pytest.fixture(scope="module")
def original(siglip_2_folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of `PICTURES` and `TEXTS`, and probabilities, by transformers alone."""
    tokenizer = GemmaTokenizer.from_pretrained(siglip_2_folder)
    tokens = tokenizer(
        [text.lower() for text in TEXTS],
        padding="max_length",
        truncation=True,
        max_length=64,
        return_tensors="pt",
    )
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in PICTURES]
    pixels = SiglipImageProcessorPil.from_pretrained(siglip_2_folder)(images, return_tensors="pt")
    with torch.inference_mode():
        found = SiglipModel.from_pretrained(siglip_2_folder).eval()(input_ids=tokens["input_ids"], **pixels)
    return (
        found.image_embeds.numpy(),
        found.text_embeds.numpy(),
        found.logits_per_image.sigmoid().numpy(),
    )


def test_vectors_are_the_originals(
    client: Client, original: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    pictures, texts, _ = original
    np.testing.assert_allclose(client.embed_images(PICTURES), pictures, atol=1e-5)
    np.testing.assert_allclose(client.embed_images(PICTURES[1:2]), pictures[1:2], atol=1e-5)
    np.testing.assert_allclose(client.embed_texts(TEXTS), texts, atol=1e-5)
    for index, text in enumerate(TEXTS):
        np.testing.assert_allclose(client.embed_texts(text)[0], texts[index], atol=1e-5)


def test_scores(
    siglip: AnyServer, client: Client, original: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    own = client.similarity(PICTURES, TEXTS)
    assert own.score == "sigmoid"
    assert own.logit_bias == pytest.approx(-12.93, abs=1e-4)
    np.testing.assert_allclose(own.probabilities, original[2], atol=2e-3)
    labels = client.similarity(PICTURES, labels=["dog", "cat"], template="a photo of a {}", score="softmax")
    assert labels.score == "softmax"
    np.testing.assert_allclose(labels.probabilities.sum(1), 1)
    with httpx.Client(timeout=60) as http:
        files = {f"file{i}": (f"{i}.png", data) for i, data in enumerate(PICTURES)}
        form = Api(siglip, http).post_files("clip_similarity", files, {"texts": json.dumps(TEXTS)}).json()
    assert form["score"] == "sigmoid"
    np.testing.assert_allclose(form["probabilities"], own.probabilities, atol=1e-6)


def test_specs(client: Client) -> None:
    image, text = Management(client).specs("clip_similarity")
    assert image.image is not None
    assert (image.image.resize, image.image.resample) == ("squash", "bilinear")
    assert text.text is not None
    assert (text.text.padding, text.text.context_length) == ("context_length", 64)
    assert image.score == text.score
