"""What is told of a run of the indexer: every file that was found is in exactly one count."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from clipserve.errors import RequestError
from pictures import files
from search.indexer import index_folder
from search.report import Report, print_report
from tests.search.conftest import picture
from tests.search.stand_in import StandIn


def test_every_file_is_in_one_count(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, table = StandIn(), tmp_path / "table"
    for path in folder.rglob("*.png"):
        os.utime(path, (time.time() - 3600,) * 2)
    assert counts(index_folder(server.as_client(), folder, table), capsys) == {
        "files": 12, "embedded": 12, "known by their contents": 0, "unchanged": 0, "not indexed": 0,
        "passed over": 0, "left out": 0,
    }  # fmt: skip

    picture(folder / "new.png", 100)
    shutil.copy(folder / "new.png", folder / "copy of new.png")
    shutil.copy(folder / "0" / "0.png", folder / "copy.png")
    (folder / "0" / "2.png").rename(folder / "moved.png")
    picture(folder / "1" / "1.png", 101)  # changed
    (folder / "1" / "3.png").unlink()
    refused, killer = picture(folder / "1" / "5.png", 102), picture(folder / "killer.png", 103)
    server.refuses[refused.read_bytes()] = RequestError("invalid_image", "it is none", 400)
    server.kills.add(killer.read_bytes())
    (folder / "empty.jpg").touch()
    (folder / "large.jpg").write_bytes(bytes(5_001))
    monkeypatch.setattr(files, "MAX_BYTES", 5_000)
    (folder / "link.png").symlink_to(folder / "new.png")
    (folder / "folder.png").symlink_to(folder / "0")
    os.mkfifo(folder / "pipe.png")
    # Embedded, and then no thumbnail can be made of it.
    (folder / "no picture.png").write_bytes(b"nothing that Pillow reads")
    for name in ("notes.txt", "no ending", ".hidden.png", "a.gif", "left/out.png"):
        picture(folder / "left" / "file.png", 104).rename((folder / name).with_suffix(".png"))
        (folder / name).with_suffix(".png").rename(folder / name)
    found = sum(1 for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    report = index_folder(server.as_client(), folder, table, exclude=["left/", "*.gif"])
    assert counts(report, capsys) == {
        "files": found - 1,  # what lies in the folder that is left out is not looked at
        "embedded": 2,
        "known by their contents": 3,
        "unchanged": 8,
        "not indexed": 8,
        "passed over": 2,
        "left out": 2,
    }
    assert len(report.failed) == 8


def test_folders_that_cannot_be_read_are_no_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def deny(path: bytes) -> object:
        if path.endswith(b"/1"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(files.os, "scandir", deny)
    report = index_folder(StandIn().as_client(), folder, tmp_path / "table")
    print_report(report)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("6 files in ")
    assert lines[2] == "not indexed: 0, and all below 1 unreadable folders"
    assert lines[3] == f"  {folder / '1'}: the folder cannot be read: Permission denied"


def counts(report: Report, capsys: pytest.CaptureFixture[str]) -> dict[str, int]:
    """The counts of the first line, which add up to the number it begins with."""
    print_report(report)
    first = capsys.readouterr().out.splitlines()[0]
    head, _, rest = first.partition(": ")
    found = {"files": int(re.fullmatch(r"(\d+) files in \d+\.\d s", head)[1])}  # type: ignore[index]
    found |= {name: int(count) for count, _, name in (part.partition(" ") for part in rest.split(", "))}
    assert found["files"] == sum(found.values()) - found["files"], first
    return found
