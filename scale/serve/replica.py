"""One Ray Serve replica of an endpoint: requests gathered into batches, answered by `clipserve.worker`."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from ray import serve
from ray.util.metrics import Counter

from clipserve.meter import server_timing, stage_metric
from clipserve.store import Store
from clipserve.wire.rows import Row
from clipserve.worker import Worker
from scale.serve.answer import Answer
from scale.serve.settings import EndpointSettings


class Replica:
    """Loads an endpoint's encoders, proves them on their golden inputs, then answers rows.

    Args:
        store: folder of the encoder files.
        device: `cpu` or `cuda`.
        model: its id; None where the store holds one only.

    Raises:
        SpecError: nothing in the store may run here.
    """

    def __init__(self, settings: EndpointSettings, store: str, device: str, model: str | None = None):
        self._settings = settings
        gathered = serve.batch(
            max_batch_size=settings.batch_size,
            batch_wait_timeout_s=settings.batch_wait_seconds,
            batch_size_fn=lambda calls: sum(map(len, calls)),
        )
        self._gather = gathered(self._answer_batch)
        # All of PyTorch in one thread: each thread that runs it has its own pool of OpenMP threads.
        self._thread = ThreadPoolExecutor(1)
        encoders = settings.encoders(Store.read(Path(store)).model(model))
        start = self._thread.submit(
            Worker, settings.name, encoders, torch.device(device), settings.handler, settings.response_seconds
        )
        self._worker = start.result()
        self._counters: dict[str, Counter] = {}
        self._busy_since: float | None = None

    async def answer(self, rows: list[Row]) -> list[Answer]:
        """Answers requests, a batch at most, together with those of other calls at the same time."""
        answers: list[Answer] = await self._gather(rows)
        return answers

    async def _answer_batch(self, calls: list[list[Row]]) -> list[list[Answer]]:
        rows = list(chain.from_iterable(calls))
        self._busy_since = time.monotonic()
        try:
            replies = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._worker.handle, rows
            )
        finally:
            self._busy_since = None
        timing = self._report()
        answers = iter([Answer(reply, timing) for reply in replies])
        return [list(islice(answers, len(call))) for call in calls]

    async def describe(self) -> dict[str, Any]:
        """Its process, and the specs of its encoders."""
        return {"pid": os.getpid(), **self._worker.describe()}

    def check_health(self) -> None:
        """Called by Ray Serve every few seconds; what raises is replaced.

        Raises:
            RuntimeError: a batch takes longer than `response_seconds`.
        """
        since = self._busy_since
        if since is not None and time.monotonic() - since > self._settings.response_seconds:
            raise RuntimeError(f"{self._settings.name}: stuck for {self._settings.response_seconds:g} s")

    def _report(self) -> str:
        """Adds to Ray's Prometheus metrics; the batch's times for those who ask."""
        counts, errors, milliseconds = self._worker.meter.take()
        for name, count in counts.items():
            self._count(name, count)
        for code, count in errors.items():
            self._count("ClipErrors", count, {"Code": code})
        for stage, spent in milliseconds.items():
            self._count(stage_metric(stage), spent)
        return server_timing(milliseconds)

    def _count(self, name: str, value: float, tags: dict[str, str] | None = None) -> None:
        if value <= 0:
            return  # Ray's counters take nothing else
        tags = {"ModelName": self._settings.name, **(tags or {})}
        if name not in self._counters:
            self._counters[name] = Counter(name, tag_keys=tuple(tags))
        self._counters[name].inc(value, tags)
