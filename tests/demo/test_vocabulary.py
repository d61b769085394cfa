"""Every language is complete, in its own script, and says each scene in words of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo.captions import LANGUAGES, VOCABULARY_DIR, load_vocabularies, load_vocabulary
from demo.world import all_scenes


def test_forty_files_for_forty_languages() -> None:
    assert len(LANGUAGES) == 40
    assert {path.stem for path in VOCABULARY_DIR.glob("*.json")} == set(LANGUAGES)
    assert list(load_vocabularies()) == list(LANGUAGES)


@pytest.mark.parametrize("code", LANGUAGES)
def test_no_caption_stands_for_two_scenes(code: str) -> None:
    vocabulary = load_vocabularies()[code]
    scene_of: dict[str, str] = {}
    for scene in all_scenes():
        captions = vocabulary.captions(scene)
        assert captions
        for caption in captions:
            assert scene_of.setdefault(caption, scene.name) == scene.name, caption


@pytest.mark.parametrize("code", LANGUAGES)
def test_more_than_one_wording(code: str) -> None:
    vocabulary = load_vocabularies()[code]
    several = [scene for scene in all_scenes() if len(set(vocabulary.captions(scene))) > 1]
    assert len(several) == len(all_scenes())


def broken(tmp_path: Path, **changes: object) -> Path:
    fields = json.loads((VOCABULARY_DIR / "de.json").read_text(encoding="utf-8"))
    path = tmp_path / "de.json"
    path.write_text(json.dumps({**fields, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"subjects": {}}, "subjects differ"),
        ({"example": ["Zwei Hunde im Schnee"]}, "should have 3"),
        ({"picture_of": ["ein Bild"]}, "picture_of"),
        ({"picture_of": ["фото: {}"]}, "letters outside Latin"),
        ({"patterns": {"1": ["{subject}"], "2": ["{subject} {where}"], "3": ["{subject} {where}"]}}, "once"),
        ({"direction": "up"}, "direction"),
        ({"script": "Runic"}, "script"),
        ({"code": "nl"}, "code"),
        ({"extra": 1}, "unexpected keyword"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_vocabulary(broken(tmp_path, **changes))
