"""Which rows are looked at."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pictures.errors import PicturesError
from pictures.facts import Facts
from pictures.filters import Filter
from pictures.rows import FileState, Row
from pictures.table import PictureTable, open_or_create_table


def taken(text: str) -> Facts:
    return Facts(
        4, 3, datetime.datetime.fromisoformat(text), "Canon EOS 5D", 51.5, -0.1, "London, United Kingdom"
    )


ROWS = {
    "/a/first.jpg": (taken("2024-05-31T23:59:59"), 0),
    "/a/second.jpg": (taken("2024-06-01T00:00:00"), 0),
    "/b/third.jpg": (Facts(4, 3, None, "o'Kamera_%", 47.5, 19.0, "Pécs, Hungary"), 1_717_200_005),
    "/b/fourth.jpg": (Facts(4, 3), 0),
}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PictureTable]:
    monkeypatch.setenv("TZ", "UTC")  # 1,717,200,005 s is in the first of June 2024
    time.tzset()
    table = open_or_create_table(tmp_path, "space", "model", 2)
    rows = [
        Row(path, FileState(1, seconds * 10**9, path, 1), np.array([1, 0], np.float32), b"", facts)
        for path, (facts, seconds) in ROWS.items()
    ]
    table.write(rows, [])
    yield table
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("which", "names"),
    [
        (Filter(), "first second third fourth"),
        (Filter(path="/a/"), "first second"),
        (Filter(camera="canon"), "first second"),
        (Filter(camera="o'kamera_%"), "third"),
        (Filter(camera="_"), "third"),
        (Filter(place="LONDON"), "first second"),
        (Filter(place="pécs"), "third"),
        (Filter(since="2024-06-01"), "second third"),
        (Filter(since="2024-06"), "second third"),
        (Filter(until="2024-05-31"), "first fourth"),
        (Filter(until="2024-05", since="2024-5-31"), "first"),
        (Filter(since="2024", until="2024"), "first second third"),
        (Filter(since="2024", path="/b/", place="hungary"), "third"),
        (Filter(since="2025"), ""),
    ],
)
def test_filters(table: PictureTable, which: Filter, names: str) -> None:
    found = table.newest(10, condition=which.condition())
    assert sorted(found) == sorted(path for path in ROWS if Path(path).stem in names.split())
    near = table.nearest_contents(np.array([1, 0], np.float32), 10, condition=which.condition())
    assert sorted(hit.path for hit in near) == sorted(found)


@pytest.mark.parametrize("text", ["yesterday", "2024-13", "2024-02-30", "0000", "9999", "2024-1-1-1", "'"])
def test_dates_that_are_none(text: str) -> None:
    with pytest.raises(PicturesError, match="is no date; write 2024-05-31, 2024-05 or 2024"):
        Filter(until=text).condition()


def test_the_newest_were_taken_last(table: PictureTable) -> None:
    """The date of taking, and the file's own where there is none."""
    assert [Path(path).stem for path in table.newest(10)] == ["third", "second", "first", "fourth"]
    assert [Path(path).stem for path in table.newest(2)] == ["third", "second"]


def test_facts_are_read_back(table: PictureTable) -> None:
    assert table.facts(ROWS) == {path: facts for path, (facts, _) in ROWS.items()}
    assert table.cameras() == ["Canon EOS 5D", "o'Kamera_%"]
