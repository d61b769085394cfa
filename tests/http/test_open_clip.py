"""open_clip folders behind a real server: what open_clip itself gave, whatever is asked together."""

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

# A server for each: half a minute.
pytestmark = pytest.mark.full

# LAION's multilingual pair and Meta's, with their most tokens.
KINDS = {"open-clip-xlm-r": 77, "open-clip-pe-core": 32}
# Few enough for one request.
TEXTS = SENTENCES[:30]


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def open_clip(
    kind: str, folder_of: FolderOf, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[AnyServer]:
    store = tmp_path_factory.mktemp(kind)
    export_pair(str(folder_of(kind)), None, "cpu", "fp32", store)
    build_archives(store, None, None)
    with serving(store, tmp_path_factory.mktemp("open-clip-server"), pytestconfig) as server:
        yield server


@pytest.fixture
def client(open_clip: AnyServer) -> Iterator[Client]:
    with open_clip.client() as client:
        yield client


def test_vectors_are_open_clips(kind: str, client: Client) -> None:
    wanted, files = golden(kind), list(PICTURES.values())
    pictures, texts = unit(wanted.pictures), unit(wanted.texts[: len(TEXTS)])
    np.testing.assert_allclose(client.embed_images(files), pictures, atol=1e-5)
    np.testing.assert_allclose(client.embed_images(files[1:2]), pictures[1:2], atol=1e-5)
    np.testing.assert_allclose(client.embed_texts(TEXTS), texts, atol=1e-5)
    for index, text in enumerate(TEXTS[:12]):
        np.testing.assert_allclose(client.embed_texts(text)[0], texts[index], atol=1e-5)


def test_scores(kind: str, client: Client) -> None:
    answer = client.similarity(list(PICTURES.values()), TEXTS)
    assert answer.score == "softmax"
    logits = golden(kind).logits[:, : len(TEXTS)].astype(np.float64)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(answer.probabilities, expected / expected.sum(1, keepdims=True), atol=2e-3)


def test_specs(kind: str, client: Client) -> None:
    image, text = Management(client).specs("clip_similarity")
    assert image.image is not None
    squashed = kind == "open-clip-pe-core"
    assert (image.image.resize, image.image.crop_offset) == (
        ("squash", "floor") if squashed else ("shortest_edge", "round")
    )
    assert text.text is not None
    assert (text.text.padding, text.text.context_length) == ("longest", KINDS[kind])
