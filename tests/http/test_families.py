"""Families from transformers' layout behind a real server, against transformers alone: vectors and scores."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from clipserve.client import Client, Management
from clipserve.encoder_spec import ScoreKind
from clipserve.preprocessing import Padding
from demo.captions import load_vocabularies
from demo.languages import EXAMPLE_PICTURES, measure, pool
from demo.languages import PICTURES as PICTURES_OF_LANGUAGES
from export_scripts.export import export_pair
from export_scripts.packages.archive import build_archives
from tests.conftest import FolderOf
from tests.http.api import AnyServer, Api, picture
from tests.http.conftest import serving

# A server for each: half a minute.
pytestmark = pytest.mark.full

TEXTS = [
    "Two Dogs in the SNOW!",
    "",
    "Két kutya a hóban",
    "ΔΎΟ ΣΚΎΛΟΙ",
    "雪の中の二匹の犬",
    "雪地里的两只狗",
    "a cat " * 90,
    "x",
]
PICTURES = [picture(i) for i in range(3)]


@dataclass(frozen=True)
class Original:
    """A family as transformers has it, by name.

    Attributes:
        lowered: whether its tokenizer leaves to the caller that texts were lowered in training.
    """

    model: Any
    processor: Any
    tokenizer: Any
    length: int
    padding: Padding = "longest"
    score: ScoreKind = "softmax"
    lowered: bool = False
    license: str | None = None

    def tokens(self, folder: Path) -> Any:
        """Of `TEXTS`, as the family was trained."""
        texts = [text.lower() for text in TEXTS] if self.lowered else TEXTS
        fixed = self.padding == "context_length"
        tokens = self.tokenizer.from_pretrained(folder)(
            texts,
            padding="max_length" if fixed else True,
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        )
        return {name: tokens[name] for name in ("input_ids", *(() if fixed else ("attention_mask",)))}


ORIGINALS = {
    "siglip-2": Original(
        transformers.SiglipModel,
        transformers.SiglipImageProcessorPil,
        transformers.GemmaTokenizer,
        64,
        padding="context_length",
        score="sigmoid",
        lowered=True,
    ),
    "metaclip-2": Original(
        transformers.MetaClip2Model,
        transformers.CLIPImageProcessorPil,
        transformers.XLMRobertaTokenizer,
        77,
        license="cc-by-nc-4.0",
    ),
    "chinese-clip": Original(
        transformers.ChineseCLIPModel,
        transformers.ChineseCLIPImageProcessorPil,
        transformers.BertTokenizer,
        52,
    ),
}


@pytest.fixture(scope="module", params=list(ORIGINALS))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def server(
    family: str,
    folder_of: FolderOf,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Iterator[AnyServer]:
    store = tmp_path_factory.mktemp(family)
    export_pair(str(folder_of(family)), None, "cpu", "fp32", store)
    build_archives(store, None, None)
    with serving(store, tmp_path_factory.mktemp("server"), pytestconfig) as server:
        yield server


@pytest.fixture
def client(server: AnyServer) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def original(family: str, folder_of: FolderOf) -> Any:
    """What transformers alone makes of `PICTURES` and `TEXTS`."""
    of, folder = ORIGINALS[family], folder_of(family)
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in PICTURES]
    pixels = of.processor.from_pretrained(folder)(images, return_tensors="pt")
    with torch.inference_mode():
        return of.model.from_pretrained(folder).eval()(**of.tokens(folder), **pixels)


def test_vectors_are_the_originals(client: Client, original: Any) -> None:
    pictures, texts = original.image_embeds.numpy(), original.text_embeds.numpy()
    np.testing.assert_allclose(client.embed_images(PICTURES), pictures, atol=1e-5)
    np.testing.assert_allclose(client.embed_images(PICTURES[1:2]), pictures[1:2], atol=1e-5)
    np.testing.assert_allclose(client.embed_texts(TEXTS), texts, atol=1e-5)
    for index, text in enumerate(TEXTS):
        np.testing.assert_allclose(client.embed_texts(text)[0], texts[index], atol=1e-5)


def test_scores(family: str, server: AnyServer, client: Client, original: Any) -> None:
    kind, logits = ORIGINALS[family].score, original.logits_per_image
    own = client.similarity(PICTURES, TEXTS)
    assert own.score == kind
    assert (own.logit_bias == pytest.approx(-12.93, abs=1e-4)) == (kind == "sigmoid")
    expected = logits.sigmoid() if kind == "sigmoid" else logits.softmax(-1)
    np.testing.assert_allclose(own.probabilities, expected, atol=2e-3)
    labels = client.similarity(PICTURES, labels=["dog", "cat"], template="a photo of a {}", score="softmax")
    assert labels.score == "softmax"
    np.testing.assert_allclose(labels.probabilities.sum(1), 1)
    with httpx.Client(timeout=60) as http:
        files = {f"file{i}": (f"{i}.png", data) for i, data in enumerate(PICTURES)}
        form = Api(server, http).post_files("clip_similarity", files, {"texts": json.dumps(TEXTS)}).json()
    assert form["score"] == kind
    np.testing.assert_allclose(form["probabilities"], own.probabilities, atol=1e-6)


def test_specs(family: str, client: Client) -> None:
    of = ORIGINALS[family]
    image, text = Management(client).specs("clip_similarity")
    assert image.image is not None
    assert image.image.resize == "squash"
    assert text.text is not None
    assert (text.text.padding, text.text.context_length) == (of.padding, of.length)
    assert image.score == text.score
    assert image.license == text.license == of.license


def test_the_languages_self_test_asks_which_of_three_it_is(client: Client) -> None:
    """Of a pair trained with a sigmoid as well, whose own probabilities of random weights are all near 0."""
    english = load_vocabularies()["en"]
    found = measure(client, {"en": english}, pool(0)[:3], 0)["en"].probabilities
    pictures = [PICTURES_OF_LANGUAGES / name for name in EXAMPLE_PICTURES]
    asked = client.similarity(pictures, english.example, score="softmax").probabilities
    np.testing.assert_allclose(found, np.diag(asked), atol=1e-6)
