"""A folder with every trap that is known: no file is lost, whatever comes between, and the report adds up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipserve.client import Client
from pictures.paths import path_to_text
from pictures.table import open_table
from search.duplicates import find_duplicates
from search.indexer import index_folder
from search.report import Report
from serving.running import TORCHSERVE_PYTHON, RunningServer, running_torchserve
from standins.collection import EXCLUDE, Collection, write_collection
from tests.search.conftest import count_embedded, words_for, write_tiny_store
from tests.search.test_indexer import SECONDS, assert_same_rows, start, wait_until

pytestmark = pytest.mark.server

FEW, ALL = 260, 5_000


@pytest.fixture(scope="module")
def has_heic() -> bool:
    """Whether the server decodes HEIC; this room does, or nothing could be written."""
    told = subprocess.run([TORCHSERVE_PYTHON, "-c", "import pillow_heif"], capture_output=True, check=False)
    return told.returncode == 0


def check(report: Report, made: Collection, table: Path, has_heic: bool) -> None:
    """Every file is in one count, and in the right one."""
    expected = {path_to_text(path) for path in made.indexed if has_heic or path not in made.heic}
    states = open_table(table).states()
    assert set(states) == expected
    for path, data in made.indexed.items():
        assert path_to_text(path) not in states or states[path_to_text(path)].size == len(data)
    refused = {path_to_text(path): reason for path, reason in made.refused.items()}
    if not has_heic:
        refused |= {path_to_text(path): "pillow_heif is missing" for path in made.heic}
    assert {path for path, _ in report.failed} == set(refused)
    assert [line for line in report.failed if refused[line[0]] not in line[1]] == []
    listing = report.listing
    assert listing.other_endings == made.others
    assert +listing.excluded_files == made.left_out
    assert listing.excluded_folders == made.left_out_folders
    assert report.written + report.unchanged == len(expected)
    assert (report.files, report.removed) == (made.found, 0)


def told(line: str) -> dict[str, int]:
    """The numbers of the report's first line, by what they count."""
    total, _, parts = line.partition(" s: ")
    counts = {what: int(number) for number, what in (part.split(" ", 1) for part in parts.split(", "))}
    assert sum(counts.values()) == int(total.split()[0]), line
    return counts


@pytest.mark.parametrize("count", [FEW, pytest.param(ALL, marks=pytest.mark.full)])
def test_every_file_is_accounted_for(
    client: Client,
    arguments: list[str],
    tmp_path: Path,
    embedded: Callable[[], int],
    has_heic: bool,
    count: int,
) -> None:
    made = write_collection(tmp_path / "pictures", count)
    assert made.found == count
    report = index_folder(client, made.root, tmp_path / "table", exclude=EXCLUDE)
    check(report, made, tmp_path / "table", has_heic)
    contents = {data for path, data in made.indexed.items() if has_heic or path not in made.heic}
    assert report.embedded == len(contents)
    groups = find_duplicates(open_table(tmp_path / "table"), 1.0).equal
    assert sum(len(group.paths) - 1 for group in groups) == report.written - len(contents)
    # The same once more, as a person sees it.
    before = embedded()
    process = start([*arguments, *(f"--exclude={one}" for one in EXCLUDE)], made.root, tmp_path / "table")
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    counts = told(output.splitlines()[0])
    assert (counts["embedded"], counts["unchanged"]) == (0, report.written)
    # What is refused by the server is asked for again, and refused again.
    assert embedded() - before <= len(made.refused)
    print(output)


def descendants(pid: int) -> Iterator[int]:
    """Those of a process, the youngest first, and itself."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            parents[int(place.parent.name)] = int(place.read_text().rpartition(")")[2].split()[1])
    for child, parent in parents.items():
        if parent == pid:
            yield from descendants(child)
    yield pid


def kill(server: RunningServer) -> None:
    for pid in descendants(server.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.full
def test_interrupted_and_without_its_server_half_way(tmp_path: Path, has_heic: bool) -> None:
    """Ctrl-C, then a server that is killed, then the rest with another: as if nothing had come between."""
    made = write_collection(tmp_path / "pictures", ALL)
    store, table = write_tiny_store(tmp_path / "store"), tmp_path / "table"
    exclude = [f"--exclude={one}" for one in EXCLUDE]

    def run_until(server: RunningServer, end: Callable[[subprocess.Popen[str]], None]) -> tuple[int, str]:
        """Ends a quarter of a run, somehow; gives its status and last words."""
        before = count_embedded(server)
        process = start([*words_for(server), *exclude], made.root, table)
        wait_until(lambda: count_embedded(server) - before >= ALL // 4 or process.poll() is not None)
        assert process.poll() is None
        end(process)
        _, errors = process.communicate(timeout=SECONDS)
        return process.returncode, errors.splitlines()[-1]

    with running_torchserve(store) as server:
        status, said = run_until(server, lambda process: process.send_signal(signal.SIGINT))
        assert status == 130
        assert said.endswith("interrupted; what was done is kept, and the same command goes on from there")
        interrupted = count_embedded(server)
        status, said = run_until(server, lambda process: kill(server))
        assert status == 1
        assert said.endswith("the same command goes on from there")
    kept = len(open_table(table))
    assert 0 < kept < len(made.indexed)
    with running_torchserve(store) as server, server.client() as client:
        report = index_folder(client, made.root, table, exclude=EXCLUDE)
        check(report, made, table, has_heic)
        print(
            f"{interrupted} sent before Ctrl-C; {kept} rows when the server was gone; then {report.written} "
            f"written, {report.embedded} embedded, {report.unchanged} unchanged"
        )
        index_folder(client, made.root, tmp_path / "fresh", exclude=EXCLUDE)
    assert_same_rows(table, tmp_path / "fresh")
