"""What processes cost, CPU seconds and resident memory, and what other programs took meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

MEGABYTE = 1_000_000

# Of all cores: more than that is somebody else's work, and not the system's own housekeeping.
BUSY_SHARE = 0.05
REPEATS = 2
REPEAT_SECONDS = 180.0

Processes = Callable[[], Sequence[psutil.Process]]
Figures = dict[str, Any]


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


class Machine:
    """What all programs take of this machine's cores since it was made; time stolen by its host counts."""

    def __init__(self) -> None:
        self._start, self._before = time.perf_counter(), _busy_seconds()

    def other_cores(self, own: float) -> float:
        """Cores that others kept busy on average, where `own` CPU seconds were those of what is measured."""
        wall = time.perf_counter() - self._start
        return max(0.0, (_busy_seconds() - self._before - own) / wall)


@dataclass
class Quiet:
    """Repeats what other programs have disturbed: so often each, and for so long in all.

    Attributes:
        bound: cores that others may take during a measurement.
        repeats: of one measurement, at most.
        seconds_left: for all repetitions of a run.
        measured, repeated: how many measurements there were, and how many tries after the first.
        disturbed: the names of those during which others took more than the bound each time.
    """

    bound: float = field(default_factory=lambda: BUSY_SHARE * (psutil.cpu_count() or 1))
    repeats: int = REPEATS
    seconds_left: float = REPEAT_SECONDS
    measured: int = 0
    repeated: int = 0
    disturbed: list[str] = field(default_factory=list)

    def measure(self, name: str, measure: Callable[[], Figures]) -> Figures:
        """The least disturbed of the tries.

        Args:
            name: for people.
            measure: gives figures, `other_cores` among them.
        """
        least, repeats = measure(), 0
        while least["other_cores"] > self.bound and repeats < self.repeats and self.seconds_left > 0:
            start = time.perf_counter()
            again = measure()
            least = min(least, again, key=lambda figures: float(figures["other_cores"]))
            self.seconds_left -= time.perf_counter() - start
            repeats += 1
        self.measured += 1
        self.repeated += repeats
        if least["other_cores"] > self.bound:
            self.disturbed.append(name)
        return least

    def facts(self) -> Figures:
        """What a page should say of the run."""
        return {
            "bound_cores": self.bound,
            "measured": self.measured,
            "repeated": self.repeated,
            "disturbed": self.disturbed,
        }


def _busy_seconds() -> float:
    """CPU seconds of the whole machine since its start, idle ones left out."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


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
