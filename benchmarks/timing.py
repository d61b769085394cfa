"""How long a call takes, and how many items a second that is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

LEAST_RUNS = 3


def timed(run: Callable[[int], object], items: int, seconds: float) -> dict[str, float]:
    """Runs for so long, after a first run that does not count.

    Args:
        run: handles `items` items; its argument counts up.

    Returns:
        `rate` in items per second, `p50_ms`, `p95_ms` and `p99_ms` of a run, `cpu_ms_per_item`.
    """
    run(0)
    times: list[float] = []
    start, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds or len(times) < LEAST_RUNS:
        begin = time.perf_counter()
        run(len(times) + 1)
        times.append(time.perf_counter() - begin)
    done = items * len(times)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    p50, p95, p99 = (1000 * float(q) for q in np.quantile(times, (0.5, 0.95, 0.99)))
    return {
        "rate": done / wall,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "cpu_ms_per_item": 1000 * cpu / done,
    }


def in_turns(items: Sequence[Any], count: int, number: int) -> list[Any]:
    """`count` of the items, others for each `number`."""
    return [items[(number * count + i) % len(items)] for i in range(count)]
