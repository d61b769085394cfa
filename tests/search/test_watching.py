"""The table follows a folder: real files, the system's own notices, a stand-in for the server."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
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
from serving.local import ROOT
from tests.search.conftest import picture
from tests.search.stand_in import StandIn
from tests.search.test_indexer import SECONDS, age, wait_until


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
        assert "4 files are gone, with a disk or more than are there" in capsys.readouterr().out
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


def test_mounts_are_read_as_the_system_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        f"36 35 98:0 / {tmp_path} rw - ext4 /dev/a rw\n"
        f"37 36 98:1 / {tmp_path}/a\\040card\\134x rw master:1 - vfat /dev/b rw\n"
        f"38 35 98:2 / {tmp_path}-beside rw - ext4 /dev/c rw\n"
    )
    monkeypatch.setattr(watching, "MOUNTS", table)
    assert watching.mounts_below(tmp_path) == {f"{tmp_path}/a card\\\\x"}


# In a namespace of its own, where everybody may mount, and which is gone with its last process.
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


class Followed:
    """`make index WATCH=1` in a namespace of its own, with what it said and what is in its table."""

    def __init__(self, arguments: list[str], disk: Path, root: Path, table: Path):
        self._table = table
        self._process = subprocess.Popen(
            [
                *(*NAMESPACE, "sh", "-c", 'mount --bind "$1" "$0" && shift && exec "$@"', root, disk),
                *(
                    sys.executable,
                    "-m",
                    "search",
                    "index",
                    *arguments,
                    "--watch",
                    "1",
                    "--table",
                    table,
                    root,
                ),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            self.said.extend(iter(stream.readline, ""))

    def until(self, line: str, names: str) -> None:
        """Waits for a line, and for a table of just these; then forgets what was said."""
        expected = sorted(names.split())

        def is_so() -> bool:
            return any(line in one for one in self.said) and self.names() == expected

        wait_until(lambda: self._process.poll() is not None or is_so())
        assert self._process.poll() is None, self.said
        self.said.clear()

    def names(self) -> list[str]:
        return sorted(Path(path).stem for path in open_table(self._table).states())

    def run(self, *command: str | Path) -> None:
        """Runs a command where it is."""
        inside = [
            "nsenter",
            "--target",
            str(self._process.pid),
            "--user",
            "--mount",
            "--preserve-credentials",
        ]
        subprocess.run([*inside, *command], check=True)

    def end(self) -> int:
        self._process.send_signal(signal.SIGINT)
        self._listening.join()
        return self._process.wait(SECONDS)


@pytest.mark.server
def test_real_disks_come_and_go(arguments: list[str], tmp_path: Path, embedded: Callable[[], int]) -> None:
    """One below the folder, though it has few of the pictures, and that of the folder itself."""
    if subprocess.run([*NAMESPACE, "mount", "--bind", tmp_path, tmp_path], check=False).returncode:
        pytest.skip("this system does not let one mount in a namespace of one's own")
    root, disk, card = tmp_path / "root", tmp_path / "disk", tmp_path / "card"
    for number in range(6):
        picture(disk / "album" / f"{number}.png", number)
    for number in range(6, 8):
        picture(card / f"{number}.png", number)
    root.mkdir()
    (disk / "in side").mkdir()
    age(tmp_path)
    followed = Followed(arguments, disk, root, tmp_path / "table")
    try:
        followed.until("watching", "0 1 2 3 4 5")
        followed.run("mount", "--bind", card, root / "in side")
        followed.until("2 embedded", "0 1 2 3 4 5 6 7")
        followed.run("umount", root / "in side")
        followed.until("2 files are gone, with a disk", "0 1 2 3 4 5 6 7")
        # What else changes meanwhile goes its way.
        followed.run("mv", root / "album", root / "renamed")
        followed.run("rm", root / "renamed" / "0.png")
        followed.until("2 files are gone, with a disk", "1 2 3 4 5 6 7")
        (card / "6.png").unlink()
        followed.run("mount", "--bind", card, root / "in side")
        followed.until("1 removed", "1 2 3 4 5 7")
        followed.run("umount", "--recursive", root)
        followed.until("no pictures in this folder", "1 2 3 4 5 7")
        picture(disk / "8.png", 8)
        followed.run("mount", "--bind", disk, root)
        followed.until("1 embedded", "1 2 3 4 5 7 8")
        assert embedded() == 9
        assert followed.end() == 130, followed.said
    finally:
        followed.end()
