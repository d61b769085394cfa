"""CASES 41: `make duplicates`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pictures.rows import FileState, Row
from pictures.table import PictureTable, open_or_create_table, open_table
from search import duplicates
from search.__main__ import main
from search.duplicates import find_duplicates, similar_rows, to_html, to_json
from search.indexer import index_folder
from tests.search.conftest import picture
from tests.search.stand_in import StandIn


def at(degrees: float) -> list[float]:
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


def filled(folder: Path, rows: list[tuple[str, str, float]]) -> PictureTable:
    """A table of path, contents and direction."""
    table = open_or_create_table(folder, "space", "model", 2)
    table.write(
        [
            Row(path, FileState(1000, 0, name, 0), np.array(at(degrees), np.float32), b"jpeg")
            for path, name, degrees in rows
        ],
        [],
    )
    return table


def test_equal_and_nearly_equal(tmp_path: Path) -> None:
    table = filled(
        tmp_path,
        [("/c", "x", 0), ("/a", "x", 0), ("/b", "y", 5), ("/d", "z", 90), ("/e", "x", 0), ("/f", "z", 90)],
    )
    found = find_duplicates(table, 0.99)
    assert [(group.sha256, group.size, group.paths) for group in found.equal] == [
        ("x", 1000, ("/a", "/c", "/e")),
        ("z", 1000, ("/d", "/f")),
    ]
    [similar] = found.similar
    assert similar.paths == ("/a", "/b")
    np.testing.assert_allclose(similar.scores, [1, np.cos(np.radians(5))], atol=1e-6)
    assert found.bytes_of_copies == 3000
    answer = json.loads(to_json(found))
    assert answer["equal"][0] == {"sha256": "x", "bytes": 1000, "paths": ["/a", "/c", "/e"]}
    assert answer["similar"] == [{"paths": ["/a", "/b"], "cosine_similarity": [1.0, 0.996195]}]


def test_a_chain_of_small_steps_joins_nothing_that_is_different() -> None:
    embeddings = np.array([at(degrees) for degrees in range(0, 90, 5)], np.float32)
    groups = [rows for rows, _ in similar_rows(embeddings, float(np.cos(np.radians(11))))]
    assert groups == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14], [15, 16, 17]]


def test_blocks_say_what_one_matrix_says(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    subjects = random.standard_normal((20, 8))
    embeddings = (subjects[random.integers(0, 20, 300)] + 0.2 * random.standard_normal((300, 8))).astype(
        np.float32
    )
    whole = list(similar_rows(embeddings, 0.97))
    assert len(whole) > 20
    monkeypatch.setattr(duplicates, "ROWS", 7)
    monkeypatch.setattr(duplicates, "COLUMNS", 11)
    blocks = list(similar_rows(embeddings, 0.97))
    assert [rows for rows, _ in blocks] == [rows for rows, _ in whole]
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    for rows, scores in blocks:
        np.testing.assert_allclose(scores, unit[rows] @ unit[rows[0]], atol=1e-5)
        assert min(scores) >= 0.97 - 1e-6
    assert len({row for rows, _ in blocks for row in rows}) == sum(len(rows) for rows, _ in blocks)


def test_the_page_holds_names_and_no_code_of_theirs(tmp_path: Path) -> None:
    table = filled(tmp_path, [("/<script>alert(1)</script>.jpg", "x", 0), ("/\\xff '\".jpg", "x", 0)])
    page = to_html(find_duplicates(table), table)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert re.findall('href="([^"]*)"', page) == [
        "file:///%3Cscript%3Ealert%281%29%3C/script%3E.jpg",
        "file:///%FF%20%27%22.jpg",
    ]
    assert page.count("data:image/jpeg;base64,anBlZw==") == 2


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        picture(tmp_path / "pictures" / f"{number}.png", number)
    shutil.copy(tmp_path / "pictures" / "1.png", tmp_path / "pictures" / "copy.png")
    table = tmp_path / "table"
    index_folder(StandIn().as_client(), tmp_path / "pictures", table)
    words = ["duplicates", "--table", str(table), "--page", str(tmp_path / "found.html")]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [f"  {tmp_path}/pictures/1.png", f"  {tmp_path}/pictures/copy.png"]
    assert lines[-2].startswith(
        "2 equal files in 1 groups (0.0 MB of copies), 0 nearly equal pictures in 0 groups"
    )
    assert lines[-2].endswith("nothing was deleted")
    assert (tmp_path / "found.html").read_text(encoding="utf-8").count("<figure>") == 2
    assert main([*words, "--json", "--threshold", "-1"]) == 0
    assert len(json.loads(capsys.readouterr().out)["similar"][0]["paths"]) == 3
    assert len(open_table(table)) == len(list((tmp_path / "pictures").iterdir())) == 4


def test_an_empty_table(tmp_path: Path) -> None:
    found = find_duplicates(open_or_create_table(tmp_path, "space", "model", 2))
    assert (found.equal, found.similar) == ([], [])
