"""How every command line ends: its exit status, and one line on stderr about what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable

from clipserve.errors import ClipServeError


def run_command(name: str, work: Callable[[], bool | None], interrupted: str = "interrupted") -> int:
    """Runs the work of a command line, and says in one line on stderr why it did not go on.

    Args:
        name: of the command, before the message.
        work: all that comes after the parsing of arguments. False: it ran to its end and has told what is not
            as it should be.
        interrupted: what is said of Ctrl-C, such as what was kept.

    Returns:
        The exit status: 0 done; 1 a known error, or a file or folder that cannot be read or written, or
        False; 130 interrupted, as shells have it for Ctrl-C. (2, usage, is the argument parser's.)
    """
    try:
        return 1 if work() is False else 0
    except ClipServeError as error:
        message, status = str(error), 1
    except OSError as error:
        message, status = _sentence(error), 1
    except KeyboardInterrupt:
        message, status = interrupted, 130
    print(f"{name}: {message}", file=sys.stderr)  # noqa: T201
    return status


def _sentence(error: OSError) -> str:
    """An error of the system's in its own words, and which file it is about."""
    if error.strerror is None:
        return " ".join(str(error).split()) or type(error).__name__
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
