"""The whole promise at its full size: 2,000 pictures; `make test-search-full`."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from clipserve.client import Client
from search.demo import draw_pictures
from search.indexer import index_folder
from tests.search.test_indexer import assert_equals_a_fresh_index, check_killed_and_resumed

pytestmark = [pytest.mark.server, pytest.mark.full]

PICTURES = 2000


def test_killed_resumed_changed_and_compared(
    arguments: list[str], client: Client, tmp_path: Path, embedded: Callable[[], int]
) -> None:
    pictures = tmp_path / "pictures"
    draw_pictures(pictures, PICTURES)
    first = check_killed_and_resumed(arguments, client, pictures, tmp_path, embedded, kill=signal.SIGKILL)
    print(f"resumed: {first.unchanged} rows were there, {first.written} written, {first.embedded} embedded")

    paths = sorted(pictures.iterdir())
    spare = tmp_path / "spare"
    draw_pictures(spare, PICTURES + 150)
    added = sorted({path.name for path in spare.iterdir()} - {path.name for path in paths})
    for name in added[:100]:
        shutil.copy(spare / name, pictures / name)
    for path, name in zip(paths[:50], added[100:150], strict=True):
        shutil.copy(spare / name, path)  # changed
    for path in paths[50:80]:
        path.unlink()
    (pictures / "moved").mkdir()
    for path in paths[80:120]:
        path.rename(pictures / "moved" / path.name)

    before = embedded()
    report = index_folder(client, pictures, tmp_path / "table")
    assert (report.embedded, report.written, report.changed) == (150, 190, 50)
    assert report.removed == 30 + 40
    assert embedded() - before == 150
    assert_equals_a_fresh_index(client, pictures, tmp_path / "table", tmp_path / "fresh")
