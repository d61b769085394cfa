"""LAION's multilingual pair behind a real server: what open_clip itself gave, whatever is asked together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from clipserve.client import Client, Management
from export_scripts.export import export_pair
from export_scripts.packages.archive import build_archives
from tests.conftest import FolderOf
from tests.export_scripts.checkpoints.open_clip.golden import PICTURES, SENTENCES, golden
from tests.export_scripts.exports import unit
from tests.http.api import AnyServer
from tests.http.conftest import serving

# A server of its own: half a minute.
pytestmark = pytest.mark.full

KIND = "open-clip-xlm-r"
# Few enough for one request.
TEXTS = SENTENCES[:30]


@pytest.fixture(scope="module")
def open_clip(
    folder_of: FolderOf, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[AnyServer]:
    store = tmp_path_factory.mktemp("open-clip")
    export_pair(str(folder_of(KIND)), None, "cpu", "fp32", store)
    build_archives(store, None, None)
    with serving(store, tmp_path_factory.mktemp("open-clip-server"), pytestconfig) as server:
        yield server


@pytest.fixture
def client(open_clip: AnyServer) -> Iterator[Client]:
    with open_clip.client() as client:
        yield client


def test_vectors_are_open_clips(client: Client) -> None:
    wanted, files = golden(KIND), list(PICTURES.values())
    pictures, texts = unit(wanted.pictures), unit(wanted.texts[: len(TEXTS)])
    np.testing.assert_allclose(client.embed_images(files), pictures, atol=1e-5)
    np.testing.assert_allclose(client.embed_images(files[1:2]), pictures[1:2], atol=1e-5)
    np.testing.assert_allclose(client.embed_texts(TEXTS), texts, atol=1e-5)
    for index, text in enumerate(TEXTS[:12]):
        np.testing.assert_allclose(client.embed_texts(text)[0], texts[index], atol=1e-5)


def test_scores(client: Client) -> None:
    answer = client.similarity(list(PICTURES.values()), TEXTS)
    assert answer.score == "softmax"
    logits = golden(KIND).logits[:, : len(TEXTS)].astype(np.float64)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(answer.probabilities, expected / expected.sum(1, keepdims=True), atol=2e-3)


def test_specs(client: Client) -> None:
    image, text = Management(client).specs("clip_similarity")
    assert image.image is not None
    assert (image.image.resize, image.image.crop_offset) == ("shortest_edge", "round")
    assert text.text is not None
    assert (text.text.padding, text.text.context_length) == ("longest", 77)
