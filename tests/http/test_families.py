"""Families behind a real server, against transformers alone or what open_clip gave: vectors and scores."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
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
from clipserve.encoder_spec import FloatArray, ScoreKind
from clipserve.preprocessing import CropOffset, Padding, Resize
from demo.captions import load_vocabularies
from demo.languages import EXAMPLE_PICTURES, measure, pool
from demo.languages import PICTURES as PICTURES_OF_LANGUAGES
from export_scripts.export import export_pair
from export_scripts.packages.archive import build_archives
from tests.conftest import FolderOf
from tests.export_scripts.checkpoints.open_clip import golden
from tests.export_scripts.exports import unit
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
class Wanted:
    """What an original gives for pictures and texts.

    Attributes:
        pictures, texts: vectors of length 1.
        logits: of each picture and text.
    """

    files: Sequence[bytes]
    sentences: Sequence[str]
    pictures: FloatArray
    texts: FloatArray
    logits: FloatArray


@dataclass(frozen=True)
class Original:
    """A family and what is asked of it: of nobody here.

    Attributes:
        wanted: of a folder.
        length, padding, score, resize, crop_offset, license: what specs have to say.
    """

    wanted: Callable[[Path], Wanted]
    length: int
    padding: Padding = "longest"
    score: ScoreKind = "softmax"
    resize: Resize = "squash"
    crop_offset: CropOffset = "floor"
    license: str | None = None


def of_transformers(
    model: Any,
    processor: Any,
    tokenizer: Any,
    length: int,
    padding: Padding = "longest",
    *,
    lowered: bool = False,
    **said: Any,
) -> Original:
    """What transformers alone makes of `PICTURES` and `TEXTS`, by name; `said` is of `Original`.

    Args:
        lowered: whether its tokenizer leaves to the caller that texts were lowered in training.
    """

    def wanted(folder: Path) -> Wanted:
        fixed = padding == "context_length"
        tokens = tokenizer.from_pretrained(folder)(
            [text.lower() for text in TEXTS] if lowered else TEXTS,
            padding="max_length" if fixed else True,
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        seen = {name: tokens[name] for name in ("input_ids", *(() if fixed else ("attention_mask",)))}
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in PICTURES]
        pixels = processor.from_pretrained(folder)(images, return_tensors="pt")
        with torch.inference_mode():
            found = model.from_pretrained(folder).eval()(**seen, **pixels)
        numbers = (found.image_embeds, found.text_embeds, found.logits_per_image)
        return Wanted(PICTURES, TEXTS, *(of.numpy() for of in numbers))

    return Original(wanted, length, padding, **said)


def of_open_clip(kind: str, **said: Any) -> Original:
    """What open_clip itself gave for a stand-in; `said` is of `Original`."""
    # Few enough for one request.
    of, texts = golden.golden(kind), golden.SENTENCES[:30]
    count = len(texts)
    wanted = Wanted(
        list(golden.PICTURES.values()), texts, unit(of.pictures), unit(of.texts[:count]), of.logits[:, :count]
    )
    return Original(lambda folder: wanted, **said)


ORIGINALS = {
    "siglip-2": of_transformers(
        transformers.SiglipModel,
        transformers.SiglipImageProcessorPil,
        transformers.GemmaTokenizer,
        64,
        "context_length",
        lowered=True,
        score="sigmoid",
    ),
    "metaclip-2": of_transformers(
        transformers.MetaClip2Model,
        transformers.CLIPImageProcessorPil,
        transformers.XLMRobertaTokenizer,
        77,
        license="cc-by-nc-4.0",
    ),
    "chinese-clip": of_transformers(
        transformers.ChineseCLIPModel,
        transformers.ChineseCLIPImageProcessorPil,
        transformers.BertTokenizer,
        52,
    ),
    # LAION's multilingual pair.
    "open-clip-xlm-r": of_open_clip(
        "open-clip-xlm-r", length=77, resize="shortest_edge", crop_offset="round"
    ),
    "open-clip-pe-core": of_open_clip("open-clip-pe-core", length=32),
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
def wanted(family: str, folder_of: FolderOf) -> Wanted:
    return ORIGINALS[family].wanted(folder_of(family))


def test_vectors_are_the_originals(client: Client, wanted: Wanted) -> None:
    files, pictures, texts = wanted.files, wanted.pictures, wanted.texts
    np.testing.assert_allclose(client.embed_images(files), pictures, atol=1e-5)
    np.testing.assert_allclose(client.embed_images(files[1:2]), pictures[1:2], atol=1e-5)
    np.testing.assert_allclose(client.embed_texts(wanted.sentences), texts, atol=1e-5)
    for index, text in enumerate(wanted.sentences[:12]):
        np.testing.assert_allclose(client.embed_texts(text)[0], texts[index], atol=1e-5)


def test_scores(family: str, server: AnyServer, client: Client, wanted: Wanted) -> None:
    kind, logits = ORIGINALS[family].score, torch.from_numpy(wanted.logits.copy())
    own = client.similarity(wanted.files, wanted.sentences)
    assert own.score == kind
    assert (own.logit_bias == pytest.approx(-12.93, abs=1e-4)) == (kind == "sigmoid")
    expected = logits.sigmoid() if kind == "sigmoid" else logits.softmax(-1)
    np.testing.assert_allclose(own.probabilities, expected, atol=2e-3)
    labels = client.similarity(
        wanted.files, labels=["dog", "cat"], template="a photo of a {}", score="softmax"
    )
    assert labels.score == "softmax"
    np.testing.assert_allclose(labels.probabilities.sum(1), 1)
    with httpx.Client(timeout=60) as http:
        files = {f"file{i}": (f"{i}.png", data) for i, data in enumerate(wanted.files)}
        fields = {"texts": json.dumps(wanted.sentences)}
        form = Api(server, http).post_files("clip_similarity", files, fields).json()
    assert form["score"] == kind
    np.testing.assert_allclose(form["probabilities"], own.probabilities, atol=1e-6)


def test_specs(family: str, client: Client) -> None:
    of = ORIGINALS[family]
    image, text = Management(client).specs("clip_similarity")
    assert image.image is not None
    assert (image.image.resize, image.image.crop_offset) == (of.resize, of.crop_offset)
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
