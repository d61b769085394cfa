"""What processes cost: CPU seconds and resident memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import psutil

MEGABYTE = 1_000_000

Processes = Callable[[], Sequence[psutil.Process]]


class CpuMeter:
    """CPU seconds that a changing family of processes takes.

    Args:
        processes: the family, asked for at both ends.
    """

    def __init__(self, processes: Processes):
        self._processes = processes
        self._before = _cpu_seconds(processes())

    def seconds(self) -> float:
        """Since the meter was made; of a process that ended in between, nothing is known."""
        now = _cpu_seconds(self._processes())
        return sum(seconds - self._before.get(process, 0.0) for process, seconds in now.items())


def _cpu_seconds(processes: Sequence[psutil.Process]) -> dict[psutil.Process, float]:
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            found[process] = times.user + times.system
    return found


def resident_megabytes(processes: Sequence[psutil.Process]) -> float:
    """Their resident memory; pages that they share count for each."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss / MEGABYTE
    return total


def family(pid: int) -> list[psutil.Process]:
    """A process with all its descendants; empty when it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []
