"""What is printed and drawn of results."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from pictures.facts import Facts
from pictures.reader import Hit
from pictures.thumbnails import EDGE
from search import fonts
from search.background import Background
from search.finder import Found
from search.fonts import font_for
from search.output import LINE, MARGIN, TEXT_SIZE, print_json, print_plain, write_contact_sheet


def found(query: str, *paths: str, copies: tuple[str, ...] = ()) -> Found:
    """Hits of a cosine of 0.5 each; the first one has copies."""
    hits = [Hit(path, "0" * 64, 0.5, copies * (path == paths[0])) for path in paths]
    return Found(query, hits, Background(0.1, 0.2), True)


def sheet(result: Found, path: Path, *notes: str) -> Path:
    stream = io.BytesIO()
    Image.new("RGB", (EDGE, EDGE), "white").save(stream, "JPEG")
    write_contact_sheet([result], {hit.path: stream.getvalue() for hit in result.hits}, path, notes)
    return path


def ink(drawn: Path, box: tuple[int, int, int, int]) -> int:
    """How many pixels of a part of the sheet are not white."""
    with Image.open(drawn) as image:
        return sum(image.convert("L").crop(box).point(lambda value: value < 128).histogram()[1:])


def test_copies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """CASES 41."""
    results = [found("dog", "/a.jpg", "/d.jpg", copies=("/b.jpg", "/c\n.jpg"))]
    print_plain(results)
    assert capsys.readouterr().out.splitlines() == [
        " 0.5000  /a.jpg",
        "      =  /b.jpg",
        "      =  /c\\n.jpg",
        " 0.5000  /d.jpg",
    ]
    taken = datetime.datetime(2024, 5, 31, 12)
    print_json(results, {"/d.jpg": Facts(40, 30, taken, "Canon EOS", 51.5, -0.1, "London, United Kingdom")})
    [answer] = json.loads(capsys.readouterr().out)
    assert [result.get("copies") for result in answer["results"]] == [["/b.jpg", "/c\n.jpg"], None]
    assert answer["results"][1] == {
        "path": "/d.jpg",
        "cosine_similarity": 0.5,
        "standard_score": 2.0,
        "width": 40,
        "height": 30,
        "taken": "2024-05-31T12:00:00",
        "camera": "Canon EOS",
        "latitude": 51.5,
        "longitude": -0.1,
        "place": "London, United Kingdom",
    }
    assert [result["standard_score"] for result in answer["results"]] == [2.0, 2.0]


def test_a_sheet_says_what_was_asked_and_what_was_found(tmp_path: Path) -> None:
    """CASES 64: query, note and file names are on it; without them those places are white."""
    sheets = {}
    for name, query, note, path in [("full", "dog", "a note", "/p/name.jpg"), ("bare", " ", " ", "/p/ ")]:
        sheets[name] = sheet(found(query, path), tmp_path / f"{name}.png", note)
    title = (MARGIN + 2 * TEXT_SIZE, 0, MARGIN + EDGE, MARGIN + LINE)
    file_name = (0, MARGIN + 2 * LINE + EDGE + 5, MARGIN + EDGE, MARGIN + 3 * LINE + EDGE)
    for box in (title, file_name):
        assert ink(sheets["full"], box) > 50
        assert ink(sheets["bare"], box) == 0


def test_a_long_name_keeps_within_its_picture_and_a_long_query_on_the_sheet(tmp_path: Path) -> None:
    """CASES 64."""
    sheet(found("dog " * 100, "/p/" + "name" * 50 + ".jpg"), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        width, height = image.size
    assert width > 1000
    assert ink(tmp_path / "sheet.png", (MARGIN + EDGE + 1, MARGIN + LINE + EDGE, width, height)) == 0
    assert ink(tmp_path / "sheet.png", (width - 200, 0, width, MARGIN + LINE)) > 50


def test_letters_that_a_font_lacks_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES 64: no row of boxes instead of a query; without a font, its number is all there is."""
    monkeypatch.setattr(fonts.shutil, "which", lambda name: None)
    fonts._font.cache_clear()
    assert isinstance(font_for("two dogs", TEXT_SIZE), ImageFont.FreeTypeFont)
    assert font_for("雪の中の二匹の犬", TEXT_SIZE) is None
    fonts._font.cache_clear()


def test_a_query_that_cannot_be_drawn_leaves_its_number_and_its_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES 64."""
    monkeypatch.setattr(fonts.shutil, "which", lambda name: None)
    fonts._font.cache_clear()
    sheet(found("雪の中", "/犬.jpg"), tmp_path / "a.png", "Japanese: in the snow")
    fonts._font.cache_clear()
    assert ink(tmp_path / "a.png", (0, 0, MARGIN + EDGE, MARGIN + LINE)) > 50
