"""The whole flow with full-size checkpoints in the hub's exact layouts: `make test-full`.

The hub is out of reach where tests run, so the weights are seeded random; loaders, graphs, archives, server
and client are those of the real thing.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image, ImageCms

from clipserve.client import Client
from clipserve.encoder_spec import FloatArray, Precision, parity_bound
from demo.captions import load_vocabularies
from demo.world import RUNNING_EXAMPLE
from export_scripts.checkpoints.loading import load_pair
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.export import export_pair
from export_scripts.packages.archive import build_archives
from serving.server import Server
from standins.checkpoints import (
    DISTILBERT_MULTILINGUAL,
    M_BERT_BASE,
    SIGLIP_2,
    SIGLIP_2_B_16,
    VIT_B_32,
    write_clip,
    write_m_clip_bert,
    write_multilingual,
    write_siglip,
)
from standins.families import chinese_clip, metaclip_2

pytestmark = [pytest.mark.full, pytest.mark.server]

PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "camera.png", "rocket.jpg", "page.png")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("full-size")
    return {
        "clip": write_clip(root / "clip-ViT-B-32", VIT_B_32),
        "distilbert": write_multilingual(root / "clip-ViT-B-32-multilingual-v1", DISTILBERT_MULTILINGUAL),
        "m-bert": write_m_clip_bert(root / "M-BERT-Base-ViT-B", M_BERT_BASE),
        "siglip-2": write_siglip(root / "siglip2-base-patch16-224", SIGLIP_2, SIGLIP_2_B_16),
        # A quarter of XLM-V's rows: an export holds several copies, of a table that is only looked up.
        "metaclip-2": metaclip_2.write_metaclip_2(
            root / "metaclip-2-worldwide-b32", replace(metaclip_2.B_32, vocabulary=250_000)
        ),
        "chinese-clip": chinese_clip.write_chinese_clip(
            root / "chinese-clip-vit-base-patch16", chinese_clip.B_16
        ),
    }


@pytest.fixture(
    scope="module",
    params=[
        *(("clip", "distilbert", precision) for precision in ("fp32", "bf16", "fp16")),
        ("clip", "m-bert", "fp32"),
        *((family, family, "fp32") for family in ("siglip-2", "metaclip-2", "chinese-clip")),
    ],
)
def served(
    request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Client, CheckpointPair, Precision]]:
    image, text, precision = request.param
    store = tmp_path_factory.mktemp("served")
    image_folder, text_folder = str(folders[image]), str(folders[text])
    try:
        export_pair(image_folder, text_folder, "cpu", precision, store)
        build_archives(store, None, None)
        with Server.private(store, 300) as server, server.client() as client:
            yield client, load_pair(image_folder, text_folder), precision
    finally:
        # Gigabytes each: all of them at once would fill a disk.
        shutil.rmtree(store)


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return [
        caption
        for vocabulary in load_vocabularies().values()
        for caption in (*vocabulary.example, *(vocabulary.captions(s)[0] for s in RUNNING_EXAMPLE))
    ]


def test_photographs_over_http_equal_the_originals(
    served: tuple[Client, CheckpointPair, Precision],
) -> None:
    client, pair, precision = served
    folder = Path(skimage.__file__).parent / "data"
    paths = [folder / name for name in PHOTOGRAPHS if (folder / name).is_file()]
    assert len(paths) >= 4
    expected = pair.image.reference([_managed(path) for path in paths])
    _assert_within_bound(client.embed_images(paths), expected, precision)


def _managed(path: Path) -> Image.Image:
    """A photograph as it is served, by Pillow alone: colours of another profile are brought to sRGB."""
    image = Image.open(path)
    if not image.info.get("icc_profile"):
        return image
    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    if "sRGB" in ImageCms.getProfileDescription(profile):
        return image
    managed = ImageCms.profileToProfile(
        image,
        profile,
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        "RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert managed is not None
    return managed


def test_forty_languages_over_http_equal_the_originals(
    served: tuple[Client, CheckpointPair, Precision], sentences: list[str]
) -> None:
    client, pair, precision = served
    _assert_within_bound(client.embed_texts(sentences), pair.text.reference_encode(sentences), precision)


def test_similarity_over_http_is_the_cosine_of_the_originals(
    served: tuple[Client, CheckpointPair, Precision], sentences: list[str]
) -> None:
    client, pair, precision = served
    path = Path(skimage.__file__).parent / "data" / "astronaut.png"
    answer = client.similarity([path], sentences)
    image = _unit(pair.image.reference([Image.open(path)]))
    texts = _unit(pair.text.reference_encode(sentences))
    tolerance = 2e-5 if precision == "fp32" else 0.05
    np.testing.assert_allclose(answer.cosine_similarity, image @ texts.T, atol=tolerance)
    assert (answer.probabilities.sum() == pytest.approx(1.0)) == (pair.image.score.kind == "softmax")


def _assert_within_bound(found: FloatArray, original: FloatArray, precision: Precision) -> None:
    expected = _unit(original)
    assert found.shape == expected.shape
    bound = parity_bound("torchscript", "cpu", precision)
    cosines = (found * expected).sum(1)
    assert bound.holds(float(np.abs(found - expected).max()), float(cosines.min()), float(cosines.mean()))


def _unit(embeddings: FloatArray) -> FloatArray:
    unit: FloatArray = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return unit
