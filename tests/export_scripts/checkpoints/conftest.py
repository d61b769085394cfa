"""Fixtures of the checkpoints' tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.export_scripts.checkpoints.edits import Change, Vary


@pytest.fixture
def vary(tmp_path: Path) -> Vary:
    """Copies a checkpoint and changes something in the copy."""

    def varied(folder: Path, change: Change) -> Path:
        copy = tmp_path / folder.name
        shutil.copytree(folder, copy)
        change(copy)
        return copy

    return varied


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that hostile pickles would make."""
    return tmp_path / "mark"
