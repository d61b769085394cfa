"""What the server fails on, what is told of it, and what is not sent again."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from clipserve.errors import RequestError, ServerError
from pictures import files
from pictures.errors import PicturesError
from pictures.table import open_or_create_table, open_table
from search import indexer
from search.indexer import index_folder
from search.report import NOT_INDEXED, Report, print_report
from tests.search.conftest import picture
from tests.search.stand_in import DIM, StandIn


def run(server: StandIn, folder: Path, *, again: bool = False) -> Report:
    # What is as it was in the last run keeps its time; what is new looks old enough to be trusted.
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_mtime > time.time() - 1800:
            os.utime(path, (time.time() - 3600,) * 2)
    return index_folder(server.as_client(), folder, folder.parent / "table", again=again)


def test_a_picture_that_kills_its_worker_is_not_sent_again_until_it_changes(
    folder: Path, tmp_path: Path
) -> None:
    """ATTACKS A4: it is remembered by its contents, wherever they lie; its neighbours are indexed."""
    server = StandIn()
    killer = picture(folder / "killer.png", 100)
    sha256 = hashlib.sha256(killer.read_bytes()).hexdigest()
    server.kills.add(killer.read_bytes())
    report = run(server, folder)
    assert report.written == 12
    [(path, reason)] = report.failed
    assert path == str(killer)
    assert reason == (
        "the server failed on it, alone too (clip_image: status 500: the worker died); "
        "not sent again until it changes"
    )
    assert server.sent.count(sha256) == 2

    # Renamed and copied, it is what it was.
    shutil.copy(killer, folder / "copy.png")
    killer.rename(folder / "0" / "moved.png")
    report = run(server, folder)
    assert server.sent.count(sha256) == 2
    assert sorted(Path(path).name for path, _ in report.failed) == ["copy.png", "moved.png"]
    assert all("not sent, since the server failed on it before (clip_image" in r for _, r in report.failed)

    # On demand it is sent, and the answer counts.
    server.kills.clear()
    report = run(server, folder, again=True)
    assert (report.written, report.failed, server.sent.count(sha256)) == (2, [], 3)


def test_a_changed_picture_is_sent(folder: Path) -> None:
    """ATTACKS A4."""
    server = StandIn()
    killer = picture(folder / "killer.png", 100)
    server.kills.add(killer.read_bytes())
    run(server, folder)
    picture(killer, 101)
    report = run(server, folder)
    assert (report.written, report.failed) == (1, [])


def test_copies_of_a_killer_cost_two_workers_in_all(folder: Path) -> None:
    """ATTACKS A4: a thousand of them would end a server for good."""
    server = StandIn()
    killer = picture(folder / "killer.png", 100)
    server.kills.add(killer.read_bytes())
    for number in range(40):
        shutil.copy(killer, folder / f"killer-{number}.png")
    report = run(server, folder)
    assert (report.written, len(report.failed)) == (12, 41)
    assert len(server.sent) == 12 + 2


def test_many_killers_do_not_end_the_run_of_a_server_that_is_well(folder: Path) -> None:
    """ATTACKS A4: so many in a row were taken for a dead server before, in every run at the same place."""
    server = StandIn()
    for number in range(3 * indexer.SERVER_FAILURES):
        server.kills.add(picture(folder / "00" / f"{number}.png", 100 + number).read_bytes())
    assert run(server, folder).written == 12
    before = len(server.sent)
    assert len(run(server, folder).failed) == 3 * indexer.SERVER_FAILURES
    assert len(server.sent) == before


def test_a_dead_server_is_no_fault_of_the_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ATTACKS A4: what fails because nobody is there is asked again by the next run."""
    monkeypatch.setattr(indexer, "READY_SECONDS", 0.0)
    server = StandIn()
    server.is_down = True
    with pytest.raises(ServerError, match="what was embedded so far is kept, and the same command goes on"):
        run(server, folder)
    server.is_down = False
    assert run(server, folder).written == 12


def test_what_the_server_was_too_busy_for_is_asked_again_and_keeps_its_row(folder: Path) -> None:
    """ATTACKS A4: a 503 tells of the server, a 4xx of the picture."""
    server = StandIn()
    run(server, folder)
    changed = picture(folder / "0" / "0.png", 100)
    server.refuses[changed.read_bytes()] = RequestError("overloaded", "the queue is full", 503)
    report = run(server, folder)
    [(path, reason)] = report.failed
    assert (path, "alone too (the queue is full)" in reason) == (str(changed), True)
    server.refuses[changed.read_bytes()] = RequestError("invalid_image", "it is none", 400)
    assert run(server, folder, again=True).failed == [(str(changed), "it is none")]


def test_reasons_are_told_once_with_a_few_examples_and_a_file_of_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CASES 65: 300 pictures refused for one reason are a few lines."""
    server = StandIn()
    for number in range(300):
        data = picture(tmp_path / "pictures" / f"{number:03d}.bmp", number).read_bytes()
        server.refuses[data] = RequestError("image_too_large", f"it has {number} pixels, allowed are 5", 413)
    picture(tmp_path / "pictures" / "good.png", 0)
    (tmp_path / "pictures" / "empty.jpg").touch()
    (tmp_path / "pictures" / "line\nend.jpg").touch()
    report = run(server, tmp_path / "pictures")
    print_report(report)
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("not indexed: 302")
    folder = tmp_path / "pictures"
    assert lines[start + 1 :] == [
        f"  {folder}/000.bmp: it has 0 pixels, allowed are 5",
        f"  {folder}/001.bmp: it has 1 pixels, allowed are 5",
        f"  {folder}/002.bmp: it has 2 pixels, allowed are 5",
        "    and 297 more for this reason",
        f"  {folder}/empty.jpg: the file is empty",
        f"  {folder}/line\\nend.jpg: the file is empty",
        f"all of them, each with its reason: {tmp_path / 'table' / NOT_INDEXED}",
    ]
    listed = (tmp_path / "table" / NOT_INDEXED).read_text(encoding="utf-8").splitlines()
    assert len(listed) == 302
    assert f"it has 299 pixels, allowed are 5\t{folder}/299.bmp" in listed
    assert f"the file is empty\t{folder}/line\\nend.jpg" in listed
    # Nothing is left of it when all is well.
    shutil.rmtree(folder)
    picture(folder / "good.png", 0)
    assert run(server, folder).failed_list is None
    assert not (tmp_path / "table" / NOT_INDEXED).exists()


def test_all_other_endings_are_told_with_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CASES 44."""
    picture(tmp_path / "pictures" / "a.png", 0)
    for count, ending in enumerate([".txt", ".mp4", ".jxl", ".xmp", ".mov", ".nef", ".pdf", ""], start=1):
        for number in range(count):
            (tmp_path / "pictures" / f"{number}{ending}").touch()
    print_report(run(StandIn(), tmp_path / "pictures"))
    assert (
        "passed over by their ending: 8 no ending, 7 .pdf, 6 .nef, 5 .mov, 4 .xmp, 3 .jxl, 2 .mp4, 1 .txt"
        in capsys.readouterr().out.splitlines()
    )


def test_what_is_excluded_is_told_and_its_rows_leave_the_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CASES 40."""
    server = StandIn()
    picture(folder / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_XL.jpg", 50)
    picture(folder / "._0.png", 51)
    table = tmp_path / "table"
    assert run(server, folder).written == 12
    report = index_folder(server.as_client(), folder, table, exclude=["1/", "*.gif"])
    assert (report.removed, report.unchanged + report.written) == (6, 6)
    assert all("/0/" in path for path in open_table(table).states())
    print_report(report)
    assert (
        "left out: nothing by *.gif, 1 files by .*, 1 folders by 1/, 1 folders by @eaDir/"
        in capsys.readouterr().out.splitlines()
    )
    assert index_folder(server.as_client(), folder, table).written == 6


def test_a_table_of_another_identity_is_embedded_anew_only_on_demand(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The space of the same pair is another once it covers more: told apart, and re-indexed knowingly."""
    run(StandIn("old" * 5), folder)
    new = StandIn("new" * 5)
    with pytest.raises(
        PicturesError, match=r"embedded by 'model' in space oldold.*embeds in space newnew.*AGAIN=1"
    ):
        run(new, folder)
    assert (len(new.sent), open_table(tmp_path / "table").space_id) == (0, "old" * 5)
    report = run(new, folder, again=True)
    assert (
        "begun anew; 12 pictures embedded by 'model' in space oldoldoldold are dropped"
        in capsys.readouterr().out
    )
    assert (report.embedded, report.written, len(new.sent)) == (12, 12, 12)
    table = open_table(tmp_path / "table")
    assert (table.space_id, len(table), table.is_of_older_version) == ("new" * 5, 12, False)
    # What is of this space already stays, also where it is asked for.
    assert run(new, folder, again=True).embedded == 0


def test_an_empty_table_of_another_size_of_embeddings_is_replaced(folder: Path, tmp_path: Path) -> None:
    open_or_create_table(tmp_path / "table", "old", "model", DIM + 1)
    assert run(StandIn(), folder, again=True).written == 12
    assert open_table(tmp_path / "table").embedding_dim == DIM


@pytest.mark.parametrize(("error", "removed"), [(errno.ESTALE, 0), (errno.EIO, 0), (errno.ENOENT, 1)])
def test_a_file_that_cannot_be_looked_at_keeps_its_row(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, removed: int
) -> None:
    """As on a network disk whose server is away; one that is gone meanwhile does not."""
    run(StandIn(), folder)
    sort_in = files._sort_in

    class Away:
        name, path = b"0.png", os.fsencode(folder / "0" / "0.png")

        def is_symlink(self) -> bool:
            return False

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(
        files,
        "_sort_in",
        lambda entry, listing: sort_in(Away() if entry.name == b"0.png" else entry, listing),
    )
    report = index_folder(StandIn().as_client(), folder, tmp_path / "table")
    assert (report.removed, report.unchanged) == (removed, 11)
    assert [reason for _, reason in report.failed] == [f"cannot be read: {os.strerror(error)}"] * (
        1 - removed
    )
    assert len(open_table(tmp_path / "table")) == 12 - removed
