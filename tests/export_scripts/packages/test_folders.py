"""Files that are published together, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from export_scripts.packages.folders import publish_files
from tests.export_scripts.commands import contents


@pytest.mark.parametrize("wrong", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("number", range(8))
def test_publishing_that_stops_is_undone(
    number: int, wrong: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES 30: whichever of the eight moves does not take place, or has just taken place."""
    staging, folder = tmp_path / "staging", tmp_path / "store"
    for place, word in ((staging, "new"), (folder, "old")):
        place.mkdir()
        for name in "abcd":
            (place / name).write_text(f"{word} {name}")
    before = contents(folder)
    replace = Path.replace
    moves = []

    def stops(self: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) == number + 1:
            if wrong is KeyboardInterrupt:
                replace(self, target)
            raise wrong
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stops)
    with pytest.raises(wrong):
        publish_files([staging / name for name in "abcd"], folder)
    assert contents(folder) == before
    monkeypatch.undo()
    shutil.rmtree(staging / "before")
    publish_files([staging / name for name in "abcd"], folder)
    assert contents(folder) == {name: f"new {name}".encode() for name in "abcd"}
