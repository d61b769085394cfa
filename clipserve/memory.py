"""Keeps what a process has freed from counting against it, and what its threads take within bounds."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8

MMAP_THRESHOLD = 8 * 1024**2  # bytes
TRIM_THRESHOLD = 32 * 1024**2  # bytes


class Allowance:
    """Bytes that threads may hold together; who asks for more than are left waits, first come, first served.

    Args:
        limit: of all together; who asks for more than that is alone.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._left = limit
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextlib.contextmanager
    def hold(self, needed: int) -> Iterator[bool]:
        """Holds so many bytes in a `with` block, once they are to be had; gives whether it had to wait."""
        held, turn = min(needed, self._limit), object()
        with self._changed:
            waits = bool(self._waiting) or held > self._left
            self._waiting.append(turn)
            self._changed.wait_for(lambda: self._waiting[0] is turn and held <= self._left)
            self._waiting.popleft()
            self._left -= held
            self._changed.notify_all()
        try:
            yield waits
        finally:
            with self._changed:
                self._left += held
                self._changed.notify_all()


def bound_free_memory() -> None:
    """Has glibc return every block of over 8 MB when it is freed, and the top of the heap beyond 32 MB.

    By itself it raises both thresholds to those of the largest block that was ever freed: after one large
    picture, the pixels of all later ones lie in the heap and stay there, some 60 MB more of them (measured).
    What a forward pass of eight pictures allocates is smaller, stays in the heap and is not zeroed anew
    each time. One arena serves all threads, since each of several keeps free memory of its own: 26 MB for the
    thread that decodes.
    """
    set_option = _libc("mallopt")
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        set_option(M_TRIM_THRESHOLD, TRIM_THRESHOLD)
        set_option(M_ARENA_MAX, 1)


def trim_memory() -> None:
    """Lets glibc return what lies free between blocks in use.

    By itself it keeps that, so that a worker that decodes pictures of all sizes grows by some 100 MB an hour
    for a while (measured) without leaking anything, and what one large request took stays. Takes a few
    milliseconds.
    """
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)


def resident_bytes() -> int:
    """This process's memory; 0 where the system does not say. Takes some microseconds."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * mmap.PAGESIZE


def _libc(name: str) -> Any:
    """A function of glibc; None where the C library is another one, or has no such function."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
