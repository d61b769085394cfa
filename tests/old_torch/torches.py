"""Where older PyTorches are: `make test-old-torch` and `make test-other-torches` put them there."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The oldest that opens a plain `.pt`.
OLDEST = "2.0.0"


def python_of(version: str) -> Path:
    """The interpreter that has it."""
    return ROOT / f".venv-torch-{version}" / "bin" / "python"


def needs(version: str) -> pytest.MarkDecorator:
    """Skips a test where it is not."""
    return pytest.mark.skipif(
        not python_of(version).is_file(), reason=f"no .venv-torch-{version}; run 'make test-other-torches'"
    )
