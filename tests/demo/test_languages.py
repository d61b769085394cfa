"""The bundled checkpoint over HTTP: it finds the right caption, and the self-test can fail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipserve.client import Client
from demo.captions import Vocabulary, load_vocabularies
from demo.languages import (
    EXAMPLE_PICTURES,
    HEAT_MAP_COLOURS,
    PICTURES,
    Bounds,
    LanguageResult,
    failed_means,
    measure,
    pool,
    summarise,
    table,
    weak_languages,
    write_heat_map,
)
from demo.world import Scene, all_scenes
from export_scripts.export import export_pair
from export_scripts.packages.archive import build_archives
from serving.server import Server

pytestmark = pytest.mark.server

# Three scripts and English: all forty are measured by `make demo-results`.
CHOSEN = ("en", "hu", "ar", "ja")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    store = tmp_path_factory.mktemp("demo-store")
    export_pair("demo", None, "cpu", "fp32", store)
    build_archives(store, None, None)
    with Server.private(store) as server, server.client() as connected:
        yield connected


@pytest.fixture(scope="module")
def chosen() -> dict[str, Vocabulary]:
    return {code: load_vocabularies()[code] for code in CHOSEN}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return pool(seed=5)


@pytest.fixture(scope="module")
def results(client: Client, chosen: dict[str, Vocabulary], scenes: list[Scene]) -> dict[str, LanguageResult]:
    return measure(client, chosen, scenes, seed=5)


def test_every_example_picture_ranks_its_own_sentence_first(client: Client) -> None:
    for vocabulary in load_vocabularies().values():
        answer = client.similarity([PICTURES / name for name in EXAMPLE_PICTURES], vocabulary.example)
        assert answer.probabilities.argmax(1).tolist() == [0, 1, 2], vocabulary.name
        assert np.diag(answer.probabilities).min() >= 0.9, vocabulary.name


def test_captions_find_their_freshly_drawn_pictures(
    results: dict[str, LanguageResult], scenes: list[Scene]
) -> None:
    assert weak_languages(results, Bounds()) == []
    assert failed_means(results, scenes, Bounds()) == []


def test_a_shuffled_vocabulary_fails_the_self_test(
    client: Client, chosen: dict[str, Vocabulary], scenes: list[Scene]
) -> None:
    hungarian = chosen["hu"]
    things = list(hungarian.subjects)
    shuffled = replace(
        hungarian,
        subjects={t: hungarian.subjects[o] for t, o in zip(things, things[1:] + things[:1], strict=True)},
    )
    results = measure(client, {"en": chosen["en"], "hu": shuffled}, scenes, seed=5)
    weak = weak_languages(results, Bounds())
    assert any("Hungarian: R@1" in line for line in weak), weak
    assert not any("English" in line for line in weak)


def test_pool_holds_every_held_out_combination_and_no_caption_twice(scenes: list[Scene]) -> None:
    assert len(set(scenes)) == len(scenes) == 200
    held_out = {scene for scene in all_scenes() if scene.held_out}
    assert held_out < set(scenes)
    assert len(held_out) >= 0.1 * len(all_scenes())


def test_table_and_heat_map(results: dict[str, LanguageResult], scenes: list[Scene], tmp_path: Path) -> None:
    lines = table(summarise(results, scenes))
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "English",
        "Hungarian",
        "Arabic",
        "Japanese",
        "mean",
    ]
    write_heat_map(results, scenes, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_the_heat_map_is_read_without_colours() -> None:
    """CASES 68: red and green of one lightness are one colour to one man in twelve."""
    import matplotlib as mpl

    rgb = mpl.colormaps[HEAT_MAP_COLOURS](np.linspace(0, 1, 50))[:, :3]
    # CIE 1931 luminance of linear sRGB (IEC 61966-2-1), gamma as 2.2.
    luminance = rgb**2.2 @ np.array([0.2126, 0.7152, 0.0722])
    assert np.diff(luminance).min() > 0
