"""How the tests run a command, and what they expect of its words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Main = Callable[[Sequence[str]], int]


def run(main: Main, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and stderr of a command."""
    capsys.readouterr()
    status = main(arguments)
    return status, capsys.readouterr().err


def assert_one_sentence(status: int, message: str, *wanted: str) -> None:
    assert status == 1
    assert message.count("\n") == 1, message
    assert "Traceback" not in message
    for words in wanted:
        assert words in message


def checkpoints_of(made: Path) -> list[str]:
    return ["--model", str(made / "clip"), "--text-model", str(made / "multilingual")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
