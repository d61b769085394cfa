from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from demo import scenes
from demo.scenes import EXAMPLES, PICTURES, draw, layout
from demo.world import COUNTS, RUNNING_EXAMPLE, THINGS, Scene, all_scenes

DOGS = Scene("snow", "dog", 2)


def test_equal_seeds_give_equal_pixels_and_others_do_not() -> None:
    first = draw(DOGS, 7)
    assert first.tobytes() == draw(DOGS, 7).tobytes()
    assert first.tobytes() != draw(DOGS, 8).tobytes()
    assert first.tobytes() != draw(Scene("snow", "dog", 3), 7).tobytes()


@pytest.mark.parametrize("size", [(640, 480), (112, 112), (90, 160)])
def test_any_size(size: tuple[int, int]) -> None:
    picture = draw(DOGS, 0, size)
    assert picture.size == size
    assert picture.mode == "RGB"


@pytest.mark.parametrize("scene", all_scenes(), ids=lambda scene: scene.name)
def test_every_scene_draws_a_picture_with_contrast(scene: Scene) -> None:
    assert np.asarray(draw(scene, 1, (64, 64))).std() > 8


@pytest.mark.parametrize("count", COUNTS)
def test_things_lie_apart_inside_the_central_square(count: int) -> None:
    for seed in range(200):
        cells = layout(Scene("grass", "ball", count), seed)
        assert len(cells) == count
        boxes = [(c.x - c.width / 2, c.base - c.height, c.x + c.width / 2, c.base) for c in cells]
        assert all(0 <= edge <= 1 for box in boxes for edge in box)
        for i, (left, top, right, bottom) in enumerate(boxes):
            for left2, top2, right2, bottom2 in boxes[:i]:
                across = min(right, right2) - max(left, left2)
                down = min(bottom, bottom2) - max(top, top2)
                assert across <= 0 or down <= 0.06  # an upper cell's shadow may touch a lower one


@pytest.mark.parametrize("thing", THINGS)
def test_things_are_drawn_in_the_central_square_only(thing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene("sea", thing, 3)
    monkeypatch.setattr(scenes, "STYLES", ("flat", "outlined"))  # the others blur or add grain
    monkeypatch.setattr(scenes, "_lit", lambda image, rng, style: image)
    full = np.asarray(draw(scene, 3))
    monkeypatch.setattr(scenes, "_put", lambda *args: None)
    monkeypatch.setattr(scenes, "_wash", lambda *args: None)
    scenery = np.asarray(draw(scene, 3))
    changed = (full != scenery).any(axis=(0, 2))
    assert changed[80:560].sum() > 200
    assert not changed[:80].any()
    assert not changed[560:].any()


def test_a_setting_alone_has_no_things() -> None:
    assert layout(Scene("sea"), 0) == []


def test_the_shipped_pictures_are_what_the_seeds_draw() -> None:
    for scene, (name, seed) in zip(RUNNING_EXAMPLE, EXAMPLES, strict=True):
        shipped = np.asarray(Image.open(PICTURES / name), dtype=int)
        drawn = np.asarray(draw(scene, seed), dtype=int)
        assert np.abs(shipped - drawn).mean() < 3  # what JPEG loses
