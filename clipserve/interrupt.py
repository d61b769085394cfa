"""Ctrl-C and `kill`: how commands are ended, alike in every room."""

from __future__ import annotations

import os
import signal
from typing import TextIO


def interrupt_on_sigterm() -> None:
    """Makes `kill` end a program as Ctrl-C does, so that it keeps its work and stops what it started."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def say_what_ends_it(stream: TextIO) -> None:
    """Tells whoever would wait for Ctrl-C in vain what ends the program instead.

    A shell without job control, which runs every script, has what it starts with `&` ignore SIGINT: Ctrl-C in
    that terminal is meant for the foreground. `trap '' INT` asks for the same. Python itself, git and rsync
    keep to that, and so do these programs.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        stream.write(
            f"Ctrl-C (SIGINT) is ignored, as by whoever started this; 'kill {os.getpid()}' ends it\n"
        )
        stream.flush()
