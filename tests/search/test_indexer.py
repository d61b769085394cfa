"""Indexing through a real server; what it embedded is counted there."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lancedb
import numpy as np
import pytest
from PIL import Image

from clipserve.client import Client
from pictures import rows, thumbnails
from pictures.errors import PicturesError
from pictures.paths import path_to_text
from pictures.rows import ADDED
from pictures.table import open_or_create_table, open_table
from search import embedding, indexer
from search.errors import SearchError
from search.indexer import Report, index_folder
from serving.local import ROOT
from tests.search.conftest import picture

pytestmark = pytest.mark.server

SECONDS = 600  # generous: the machine may be busy


def contents(folder: Path) -> dict[str, tuple[str, bytes, bytes]]:
    """Everything in a table that does not tell of time: hash, embedding and thumbnail by path."""
    table = open_table(folder)
    states = table.states()
    assert len(table) == len(states), "a path is in the table twice"
    known = table.by_hash(state.sha256 for state in states.values())
    return {
        path: (state.sha256, np.round(known[state.sha256][0], 4).tobytes(), known[state.sha256][1])
        for path, state in states.items()
    }


def assert_equals_a_fresh_index(client: Client, pictures: Path, table: Path, fresh: Path) -> None:
    index_folder(client, pictures, fresh)
    assert_same_rows(table, fresh)


def assert_same_rows(table: Path, fresh: Path) -> None:
    """But for their times, and what another batch makes of an embedding."""
    found, expected = contents(table), contents(fresh)
    assert set(found) == set(expected)
    for path, (sha256, _, thumbnail) in expected.items():
        assert (found[path][0], found[path][2]) == (sha256, thumbnail)
    for path in expected:
        a, b = (np.frombuffer(c[path][1], np.float32) for c in (found, expected))
        np.testing.assert_allclose(a, b, atol=2e-4)


def age(folder: Path) -> None:
    """Makes files look an hour old, so that their times can be trusted."""
    hour_ago = time.time() - 3600
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (hour_ago, hour_ago))


def start(
    arguments: list[str], pictures: Path, table: Path, *, as_in_background: bool = False
) -> subprocess.Popen[str]:
    # What a script's shell does before it starts `command &`.
    shell = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"] if as_in_background else []
    return subprocess.Popen(
        [*shell, sys.executable, "-m", "search", "index", *arguments, "--table", table, pictures],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_new_unchanged_changed_moved_copied_removed(
    client: Client, folder: Path, tmp_path: Path, embedded: Callable[[], int]
) -> None:
    table = tmp_path / "table"
    age(folder)
    report = index_folder(client, folder, table)
    assert (report.embedded, report.written, report.unchanged) == (12, 12, 0)
    assert embedded() == 12
    report = index_folder(client, folder, table)
    assert (report.embedded, report.written, report.unchanged) == (0, 0, 12)

    picture(folder / "new.png", 100)
    picture(folder / "0" / "0.png", 101)  # changed
    (folder / "0" / "2.png").rename(folder / "1" / "moved.png")
    shutil.copy(folder / "0" / "4.png", folder / "copy.png")
    (folder / "0" / "6.png").unlink()
    # Two pictures change places, each with the other's contents.
    (folder / "1" / "1.png").rename(tmp_path / "swap")
    (folder / "1" / "3.png").rename(folder / "1" / "1.png")
    (tmp_path / "swap").rename(folder / "1" / "3.png")
    os.utime(folder / "1" / "1.png")
    os.utime(folder / "1" / "3.png")
    report = index_folder(client, folder, table)
    assert (report.embedded, report.written, report.changed, report.removed) == (2, 6, 3, 2)
    assert embedded() == 14
    assert_equals_a_fresh_index(client, folder, table, tmp_path / "fresh")


def test_what_an_older_version_did_not_look_at_is_read_once_and_not_embedded(
    client: Client, folder: Path, tmp_path: Path, embedded: Callable[[], int]
) -> None:
    made = Image.Exif()
    made[271], made[272] = "Canon", "Canon EOS"
    with Image.open(folder / "0" / "0.png") as image:
        image.save(folder / "0" / "0.png", exif=made)
    age(folder)
    index_folder(client, folder, tmp_path / "table")
    inner = lancedb.connect(tmp_path / "table").open_table("pictures")
    inner.drop_columns([field.name for field in ADDED])
    report = index_folder(client, folder, tmp_path / "table")
    assert (report.embedded, report.written, report.changed, report.unchanged) == (0, 12, 0, 0)
    assert embedded() == 12
    assert_equals_a_fresh_index(client, folder, tmp_path / "table", tmp_path / "fresh")
    table = open_table(tmp_path / "table")
    assert table.cameras() == ["Canon EOS"]
    assert {(facts.width, facts.height) for facts in table.facts(table.states()).values()} == {(96, 64)}
    assert index_folder(client, folder, tmp_path / "table").unchanged == 12


def test_copies_are_embedded_once(client: Client, tmp_path: Path, embedded: Callable[[], int]) -> None:
    first = picture(tmp_path / "pictures" / "0.png", 0)
    for number in range(1, 40):
        shutil.copy(first, tmp_path / "pictures" / f"{number}.png")
    report = index_folder(client, tmp_path / "pictures", tmp_path / "table")
    assert (report.embedded, report.written) == (1, 40)
    assert embedded() == 1


def test_change_within_the_same_instant_is_seen(
    client: Client, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may take longer between writing and reading than two seconds.
    monkeypatch.setattr(rows, "RACY_NS", 3600 * 10**9)
    path = picture(folder / "a.bmp", 1)
    index_folder(client, folder, tmp_path / "table")
    before = path.stat()
    picture(path, 2)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert index_folder(client, folder, tmp_path / "table").changed == 1


def test_other_folders_of_the_table_are_left_alone(client: Client, folder: Path, tmp_path: Path) -> None:
    index_folder(client, folder / "0", tmp_path / "table")
    index_folder(client, folder / "1", tmp_path / "table")
    (folder / "0" / "0.png").unlink()
    assert index_folder(client, folder / "1", tmp_path / "table").removed == 0
    assert index_folder(client, folder, tmp_path / "table").removed == 1


def test_unreadable_files_are_listed_and_stop_nothing(client: Client, folder: Path, tmp_path: Path) -> None:
    good = (folder / "0" / "0.png").read_bytes()
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "half.png").write_bytes(good[: len(good) // 2])
    (folder / "empty.jpg").touch()
    (folder / "loop").symlink_to(folder)
    name = os.fsencode(folder) + b"/k\xe9p \xff.png"
    Path(os.fsdecode(name)).write_bytes(good + b"another")
    report = index_folder(client, folder, tmp_path / "table")
    reasons = {Path(path).name: reason for path, reason in report.failed}
    assert set(reasons) == {"text.jpg", "half.png", "empty.jpg", "loop"}
    assert reasons["text.jpg"].startswith("the bytes are no picture in an allowed format (")
    assert reasons["half.png"].startswith("the image cannot be decoded")
    assert path_to_text(name) in open_table(tmp_path / "table").states()
    assert report.written == 13


def test_a_picture_that_becomes_something_else_leaves_the_table(
    client: Client, folder: Path, tmp_path: Path
) -> None:
    index_folder(client, folder, tmp_path / "table")
    (folder / "0" / "0.png").write_text("no picture any more")
    report = index_folder(client, folder, tmp_path / "table")
    assert (report.removed, len(report.failed)) == (1, 1)
    assert_equals_a_fresh_index(client, folder, tmp_path / "table", tmp_path / "fresh")


def test_empty_folder_leaves_the_table_as_it_was(client: Client, folder: Path, tmp_path: Path) -> None:
    index_folder(client, folder, tmp_path / "table")
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").touch()
    with pytest.raises(SearchError, match=r"no pictures in this folder \(1 .txt\); the table .* as it was"):
        index_folder(client, folder, tmp_path / "table")
    assert len(open_table(tmp_path / "table")) == 12


def test_another_space_is_refused(client: Client, folder: Path, tmp_path: Path) -> None:
    open_or_create_table(tmp_path / "table", "f" * 16, "another", 32)
    with pytest.raises(
        PicturesError, match=r"embedded by 'another' .* cannot be compared; .* make index IMAGES="
    ):
        index_folder(client, folder, tmp_path / "table")
    assert len(open_table(tmp_path / "table")) == 0


def test_no_server(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from search.__main__ import main

    assert (
        main(["index", str(folder), "--table", str(tmp_path / "t"), "--key-file", str(tmp_path / "k")]) == 1
    )
    assert "no token file; start the server with 'make serve'" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_thumbnail_that_fails_is_listed_and_costs_nothing_again(
    client: Client,
    folder: Path,
    tmp_path: Path,
    embedded: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(data: bytes) -> bytes:
        raise ValueError("broken")

    monkeypatch.setattr(embedding, "make_thumbnail", fail)
    report = index_folder(client, folder, tmp_path / "table")
    assert [reason for _, reason in report.failed] == ["no thumbnail can be made: broken"] * 12
    monkeypatch.setattr(embedding, "make_thumbnail", thumbnails.make_thumbnail)
    assert index_folder(client, folder, tmp_path / "table").written == 12
    assert embedded() == 12


def check_killed_and_resumed(
    arguments: list[str],
    client: Client,
    pictures: Path,
    tmp_path: Path,
    embedded: Callable[[], int],
    *,
    kill: signal.Signals,
    as_in_background: bool = False,
) -> Report:
    """Ends an indexer half-way, resumes; what was embedded is counted at the server."""
    age(pictures)
    total = sum(1 for path in pictures.rglob("*") if path.is_file())
    table = tmp_path / "table"
    process = start(arguments, pictures, table, as_in_background=as_in_background)
    wait_until(lambda: embedded() >= total // 2 or process.poll() is not None)
    assert process.poll() is None
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    [ignored] = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn:")]
    assert bool(ignored & (1 << (signal.SIGINT - 1))) == as_in_background
    process.send_signal(kill)
    _, error = process.communicate(timeout=SECONDS)
    assert (f"'kill {process.pid}' ends it" in error) == as_in_background
    assert process.returncode == (-signal.SIGKILL if kill == signal.SIGKILL else 130)
    # Answers that were under way to a process that is no more.
    before = -1
    while before != embedded():
        before = embedded()
        time.sleep(0.5)
    assert total // 2 <= before < total
    report = index_folder(client, pictures, table)
    assert report.unchanged + report.written == total
    assert embedded() == before + report.embedded
    lost = embedded() - total
    assert lost <= (indexer.CONCURRENCY if kill == signal.SIGKILL else 0)
    if lost:
        print(f"{lost} requests were in the air when the indexer was killed")
    return report


@pytest.mark.parametrize(
    ("kill", "as_in_background"),
    [(signal.SIGKILL, False), (signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)],
)
def test_killed_and_resumed(
    arguments: list[str],
    client: Client,
    tmp_path: Path,
    embedded: Callable[[], int],
    kill: signal.Signals,
    as_in_background: bool,
) -> None:
    """CASES 70: `kill` is as good as Ctrl-C, and all there is where a script's shell has that ignored."""
    for number in range(150):
        picture(tmp_path / "pictures" / f"{number}.png", number)
    check_killed_and_resumed(
        arguments,
        client,
        tmp_path / "pictures",
        tmp_path,
        embedded,
        kill=kill,
        as_in_background=as_in_background,
    )
    assert_equals_a_fresh_index(client, tmp_path / "pictures", tmp_path / "table", tmp_path / "fresh")


def test_two_indexers_at_once_lose_nothing(
    arguments: list[str], client: Client, tmp_path: Path, embedded: Callable[[], int]
) -> None:
    for number in range(60):
        picture(tmp_path / "pictures" / f"{number}.png", number)
    age(tmp_path / "pictures")
    both = [start(arguments, tmp_path / "pictures", tmp_path / "table") for _ in range(2)]
    outputs = [process.communicate(timeout=SECONDS) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert embedded() == 60
    assert sum("60 embedded" in out for out, _ in outputs) == 1
    assert_equals_a_fresh_index(client, tmp_path / "pictures", tmp_path / "table", tmp_path / "fresh")


def test_a_proxy_of_the_environment_gets_neither_pictures_nor_tokens(
    arguments: list[str], folder: Path, tmp_path: Path
) -> None:
    """ATTACKS C1: nobody knocks at it, and the run is as without it."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        proxy = f"http://127.0.0.1:{door.getsockname()[1]}"
        names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"]
        environment = {**os.environ, **dict.fromkeys(names, proxy), "NO_PROXY": "", "no_proxy": ""}
        for words in (["index", str(folder)], ["search", "--text", "kutya"]):
            done = subprocess.run(
                [sys.executable, "-m", "search", *words, *arguments, "--table", str(tmp_path / "table")],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
            assert done.returncode == 0, done.stderr
        assert select.select([door], [], [], 0) == ([], [], [])


IN_A_SMALL_DISK = r"""
set -eu
mount -t tmpfs -o size=400k disk "$TABLE"
python -m search index "$@" --table "$TABLE" "$FEW"
"$BREAK"
if python -m search index "$@" --table "$TABLE" "$MANY"; then echo "should have failed"; exit 9; fi
python -m search search "$@" --table "$TABLE" --text kutya --limit 100 --json
"""


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_full_disk_and_read_only_table(arguments: list[str], tmp_path: Path, how: str) -> None:
    """On a file system of its own: a small one that runs full, or one that becomes read-only."""
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*namespace, "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a file system of their own")
    few, table = tmp_path / "few", tmp_path / "table"
    table.mkdir()
    for number in range(5):
        picture(few / f"{number}.png", number)
    script = IN_A_SMALL_DISK.replace('"$BREAK"', "" if how == "full" else 'mount -o remount,ro "$TABLE"')
    for number in range(100):
        picture(tmp_path / "many" / f"{number}.png", 100 + number, (224, 224))
    result = subprocess.run(
        [*namespace, "sh", "-c", script, "sh", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FEW": str(few),
            "MANY": str(tmp_path / "many"),
            "TABLE": str(table),
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    [line] = [line for line in result.stderr.splitlines() if line.startswith("search: ")]
    assert "cannot be written" in line
    assert ("full" if how == "full" else "ead-only") in line or "No space" in line
    assert "Traceback" not in result.stderr
    # What was in the table is there still; of the others, what was committed before the disk was full.
    found = {hit["path"] for hit in json.loads(result.stdout[result.stdout.index("[") :])[0]["results"]}
    assert {str(few / f"{number}.png") for number in range(5)} <= found
    assert len(found) == 5 if how == "read-only" else len(found) < 105
