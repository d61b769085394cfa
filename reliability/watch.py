"""The memory of a server's processes over time, and whether one was replaced."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import defaultdict
from types import TracebackType

import numpy as np
import psutil

from clipserve.client import Management
from reliability.load import AnyServer

MEGABYTE = 1_000_000


class MemoryWatch:
    """Samples each worker's memory between `__enter__` and `__exit__`.

    Args:
        seconds: between two samples.
        frontend: watch the processes that requests pass before as well, such as TorchServe's Java.
    """

    def __init__(self, server: AnyServer, seconds: float = 0.25, *, frontend: bool = False):
        self._seconds = seconds
        with server.client() as client:
            management = Management(client)
            self._workers = {
                endpoint: psutil.Process(worker.pid)
                for endpoint in server.endpoints
                for worker in management.workers(endpoint)[:1]
            }
        if frontend:
            self._workers |= server.frontends()
        self._samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finished.set()
        self._thread.join()

    def lost(self) -> list[str]:
        """Names of workers and frontends that are not those of the beginning."""
        return [name for name, process in self._workers.items() if not process.is_running()]

    def peaks(self) -> dict[str, float]:
        """The most memory of each worker over its first sample, megabytes."""
        return {name: max(m for _, m in s) - s[0][1] for name, s in self._samples.items() if s}

    def floors(self, since: float, until: float) -> dict[str, list[float]]:
        """Least memory of each process over its first sample, in each quarter of a time; megabytes.

        What a request holds for a moment does not count, and what is never given back does.
        """
        edges = np.linspace(since, until, 5)
        return {
            name: [
                min((memory for moment, memory in samples if begin <= moment <= end), default=np.nan)
                - samples[0][1]
                for begin, end in itertools.pairwise(edges)
            ]
            for name, samples in self._samples.items()
            if samples
        }

    def slopes(self, after: float) -> dict[str, tuple[float, float]]:
        """Growth of each worker in megabytes per hour, and its standard error.

        Over the minima of one-minute windows, so that what a batch holds for a moment does not count.

        Args:
            after: seconds to leave out at the beginning, while allocators warm up.
        """
        found = {}
        for name, samples in self._samples.items():
            first = samples[0][0] + after
            windows: dict[int, float] = {}
            for moment, memory in samples:
                if moment >= first:
                    minute = int((moment - first) // 60)
                    windows[minute] = min(memory, windows.get(minute, memory))
            found[name] = _slope(np.array(list(windows)), np.array(list(windows.values())))
        return found

    def _run(self) -> None:
        while not self._finished.wait(self._seconds):
            for name, process in self._workers.items():
                with contextlib.suppress(psutil.Error):
                    memory = process.memory_info().rss / MEGABYTE
                    self._samples[name].append((time.monotonic(), memory))


def _slope(minutes: np.ndarray, memory: np.ndarray) -> tuple[float, float]:
    if len(minutes) < 3:
        return 0.0, float("inf")
    (slope, _), covariance = np.polyfit(minutes, memory, 1, cov="unscaled")
    residuals = memory - np.polyval(np.polyfit(minutes, memory, 1), minutes)
    variance = float(residuals @ residuals) / (len(minutes) - 2)
    return 60 * float(slope), 60 * float(np.sqrt(variance * covariance[0, 0]))
