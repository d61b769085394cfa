"""What a command line makes of Ctrl-C, of a full disk and of an option that it does not have.

Run in the command's own environment: `python tests/command_lines.py MODULE WORD…` prints it as JSON. The
words are such that the command gets as far as its work, which then ends at its first look at an argument.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

Main = Callable[[Sequence[str]], int]


class Ended(argparse.Namespace):
    """Arguments of which none can be read."""

    def __init__(self, wrong: BaseException):
        object.__setattr__(self, "_wrong", wrong)

    def __getattribute__(self, name: str) -> NoReturn:
        raise object.__getattribute__(self, "_wrong")


def told(main: Main, words: Sequence[str], wrong: BaseException | None = None) -> tuple[int, str]:
    """Status and stderr of a command; `wrong` is raised as soon as its work looks at an argument."""
    parse_args = argparse.ArgumentParser.parse_args

    def ended(self: argparse.ArgumentParser, *given: Any, **more: Any) -> argparse.Namespace:
        parse_args(self, *given, **more)
        return Ended(wrong) if wrong is not None else argparse.Namespace()

    errors = io.StringIO()
    argparse.ArgumentParser.parse_args = ended  # type: ignore[assignment,method-assign]
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = main(words)
    except SystemExit as ended_with:
        status = int(str(ended_with.code))
    except BaseException as error:  # what a person would see as a traceback
        status, errors = -1, io.StringIO(repr(error))
    finally:
        argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign]
    return status, errors.getvalue()


def outcomes(module: str, words: Sequence[str]) -> dict[str, tuple[int, str]]:
    """What the command tells of each."""
    main: Main = import_module(module).main
    return {
        "unknown option": told(main, [*words, "--no-such-option"]),
        "interrupted": told(main, words, KeyboardInterrupt()),
        "full disk": told(main, words, OSError(errno.ENOSPC, "No space left on device", "/a/file")),
    }


if __name__ == "__main__":
    sys.path.insert(0, "")
    print(json.dumps(outcomes(sys.argv[1], sys.argv[2:])))
