"""What a worker counts: requests, errors, cache hits, and the time that each stage takes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

Stage = Literal["parse", "decode", "tokenise", "inference", "serialise"]

# A request with this header gets its batch's times in the standard Server-Timing response header.
TIMING_HEADER = "x-clipserve-timing"


def stage_metric(stage: str) -> str:
    """Name of the counter of the milliseconds that a stage took."""
    return f"Clip{stage.capitalize()}Milliseconds"


def server_timing(milliseconds: Mapping[str, float]) -> str:
    """Milliseconds by stage as the value of a Server-Timing header."""
    return ", ".join(f"{stage};dur={spent:.2f}" for stage, spent in milliseconds.items())


class Meter:
    """Counts and stage times since they were last taken.

    All are sums: divided by each other (time by requests, requests by batches) they give means over any time.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, name: str, count: int) -> None:
        """Adds to a counter."""
        self._counts[name] += count

    def error(self, code: str) -> None:
        """Counts a request or an item that was refused."""
        self._errors[code] += 1

    @contextlib.contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Adds the time of a `with` block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            # Pictures are decoded in several threads.
            with self._lock:
                self._seconds[name] = self._seconds.get(name, 0.0) + spent

    def take(self) -> tuple[dict[str, int], dict[str, int], dict[str, float]]:
        """Counters by name, errors by code and milliseconds by stage since the last call."""
        taken = (
            dict(self._counts),
            dict(self._errors),
            {name: 1000 * seconds for name, seconds in self._seconds.items()},
        )
        self._counts.clear()
        self._errors.clear()
        self._seconds.clear()
        return taken
