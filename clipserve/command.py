"""What all command lines do with an error."""

from __future__ import annotations

import sys
from collections.abc import Callable

from clipserve.errors import ClipServeError


def run_command(name: str, work: Callable[[], object]) -> int:
    """Runs the work of a command line, and says in one line on stderr why it did not go on.

    Args:
        name: of the command, before the message.

    Returns:
        The exit status: 0 done; 1 a known error, or a file or folder that cannot be read or written; 130
        interrupted, as shells have it for Ctrl-C. (2, usage, is the argument parser's.)
    """
    try:
        work()
    except ClipServeError as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except OSError as error:
        print(f"{name}: {_sentence(error)}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _sentence(error: OSError) -> str:
    """An error of the system's in its own words, and which file it is about."""
    if error.strerror is None:
        return " ".join(str(error).split()) or type(error).__name__
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
