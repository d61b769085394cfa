"""The table follows a folder: real files, the system's own notices, a stand-in for the server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from watchfiles import Change

from clipserve.errors import ClipServeError, ServerError
from pictures.table import open_table
from search import watching
from search.report import Report, print_report
from search.watching import follow
from tests.search.conftest import picture
from tests.search.stand_in import StandIn


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "STEP", 0.1)
    monkeypatch.setattr(watching, "POLL", 0.1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(4):
        picture(tmp_path / "disk" / "album" / f"{number}.png", number)
    return tmp_path / "disk"


def done(told: Report | ClipServeError) -> Report:
    assert isinstance(told, Report), told
    return told


def until(runs: Iterator[Report | ClipServeError], table: Path, names: str) -> Report:
    """Goes on until the table has just these; a run may have seen half of what was done."""
    while True:
        report = done(next(runs))
        if sorted(Path(path).stem for path in open_table(table).states()) == sorted(names.split()):
            return report


@pytest.mark.parametrize("poll", [False, True], ids=["told", "polled"])
def test_new_renamed_and_removed(root: Path, tmp_path: Path, poll: bool) -> None:
    server, table = StandIn(), tmp_path / "table"
    with contextlib.closing(follow(server.as_client(), root, table, poll=poll)) as runs:
        assert done(next(runs)).embedded == 4
        picture(root / "new" / "5.png", 5)
        until(runs, table, "0 1 2 3 5")
        (root / "album").rename(root / "renamed")
        (root / "new" / "5.png").rename(root / "6.png")
        until(runs, table, "0 1 2 3 6")
        assert len(server.sent) == 5  # what is renamed is not embedded again
        (root / "6.png").unlink()
        until(runs, table, "0 1 2 3")


def test_a_disk_that_is_unmounted_is_waited_for(root: Path, tmp_path: Path) -> None:
    """Whether its place vanishes or is empty, and what is mounted again is another folder there."""
    server, table, away = StandIn(), tmp_path / "table", tmp_path / "away"
    with contextlib.closing(follow(server.as_client(), root, table)) as runs:
        next(runs)
        root.rename(away)
        told = next(runs)
        while isinstance(told, Report):  # one that was under way
            told = next(runs)
        assert "not there; its rows stay" in str(told) or "no such folder" in str(told)
        assert len(open_table(table)) == 4
        away.rename(root)
        picture(root / "5.png", 5)
        for told in runs:
            if isinstance(told, Report) and told.embedded:
                break
        assert len(open_table(table)) == 5
        # Only the place is left.
        root.rename(away)
        root.mkdir()
        for told in runs:
            if "no pictures in this folder" in str(told):
                break
        assert len(open_table(table)) == 5
    assert len(server.sent) == 5


def test_a_disk_below_it_that_is_unmounted_keeps_its_rows(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More than half of all at once; one by one they go."""
    table = tmp_path / "table"
    picture(root / "here.png", 9)
    with contextlib.closing(follow(StandIn().as_client(), root, table)) as runs:
        next(runs)
        (root / "album").rename(tmp_path / "away")
        report = done(next(runs))
        assert (report.missing, report.removed, len(open_table(table))) == (4, 0, 5)
        print_report(report)
        assert "4 files are gone, more than are there" in capsys.readouterr().out
        (tmp_path / "away").rename(root / "album")
        (root / "album" / "0.png").unlink()
        until(runs, table, "1 2 3 here")


def test_what_goes_wrong_is_told_and_tried_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "RETRY", 0.0)
    run, failures = watching.index_folder, [ServerError("the server cannot be reached")]

    def failing_once(*words: Any, **options: Any) -> Report:
        if failures:
            raise failures.pop()
        return run(*words, **options)

    monkeypatch.setattr(watching, "index_folder", failing_once)
    with contextlib.closing(follow(StandIn().as_client(), root, tmp_path / "table")) as runs:
        assert "cannot be reached" in str(next(runs))
        assert done(next(runs)).embedded == 4


@pytest.mark.parametrize(
    ("change", "path", "counts"),
    [
        (Change.added, "{root}/a.jpg", True),
        (Change.modified, "{root}/a.JPG", True),
        (Change.deleted, "{root}/album", True),
        (Change.modified, "{root}/notes.txt", False),
        # The table changes with every run, and would cause the next.
        (Change.added, "{table}/pictures.lance/data/1.lance", False),
        (Change.deleted, "{table}/journal.sqlite", False),
    ],
)
def test_what_counts_as_a_change(
    root: Path, monkeypatch: pytest.MonkeyPatch, change: Change, path: str, counts: bool
) -> None:
    table = root / "table"
    answers: list[bool] = []

    def asking(*_: object, watch_filter: Callable[[Change, str], bool], **__: object) -> Iterator[set[str]]:
        answers.append(watch_filter(change, path.format(root=root, table=table)))
        yield set()

    monkeypatch.setattr(watching, "watch", asking)
    assert list(watching._changes(root, table, poll=False)) == [False]
    assert answers == [counts]
