"""What people write on a command line: words that every command reads in the same way.

Make hands over a variable that is empty as an empty word, which `Path` would take for the folder one is in.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Tells of a wrong word in one sentence, with status 2."""

    def error(self, message: str) -> NoReturn:
        """Ends the program."""
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def path(text: str) -> Path:
    """A file or folder; `~` is the home folder.

    Raises:
        argparse.ArgumentTypeError: it is empty, or of a user who is not known.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("no file or folder is named")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def whole(least: int, most: int) -> Callable[[str], int]:
    """Gives a function that reads a whole number between two bounds, both included."""

    def read(text: str) -> int:
        allowed = f"{text!r}: allowed are whole numbers from {least} to {most}"
        try:
            value = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(allowed) from error
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(allowed)
        return value

    return read


# Port 0 is any free one, which nobody would find.
port = whole(1, 65535)
