"""A worker: one endpoint set up in a process of its own, whichever server hosts it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

# `Reply.json` imports it when it first answers: that it is missing is known before the worker is ready.
import orjson  # noqa: F401
import torch

from clipserve.encoder import ENCODERS
from clipserve.endpoints import ENDPOINTS
from clipserve.hardware import usable_cores
from clipserve.memory import bound_free_memory, resident_bytes, trim_memory
from clipserve.meter import Meter
from clipserve.pipeline import Pipeline
from clipserve.settings import Settings
from clipserve.store import Store
from clipserve.wire.rows import Reply, Row

logger = logging.getLogger(__name__)

BATCHES_PER_TRIM = 200
# Over what a worker has when it is ready; more than the heap may keep at its top.
BYTES_TO_TRIM = 64_000_000
# So that a worker that needs more than that for ordinary work spends a hundredth of its time on it at most.
SECONDS_BETWEEN_TRIMS = 1.0


class Worker:
    """An endpoint that has proven its encoders on their golden inputs.

    Args:
        name: of the endpoint, one of `ENDPOINTS`.
        encoders: of one model; of each modality, the best that may run here is taken.
        device: where to run.
        response_seconds: after which the server takes this worker for stuck, and replaces it.

    Raises:
        SpecError: none of them may run here.
    """

    def __init__(
        self,
        name: str,
        encoders: Store,
        device: torch.device,
        settings: Settings,
        response_seconds: float,
    ):
        bound_free_memory()
        settings, lowered = settings.within(response_seconds)
        settings = replace(settings, threads=settings.threads or usable_cores())
        torch.set_num_threads(settings.threads)
        endpoint = ENDPOINTS[name]
        files = {modality: encoders.best(modality, device.type) for modality in endpoint.modalities}
        loaded = [ENCODERS[modality](file.path, device) for modality, file in files.items()]
        self._pipeline = Pipeline(endpoint, loaded, settings)
        self._batches = 0
        # Originals were freed one by one as their packed forms were made, and lie as holes between these.
        trim_memory()
        self._idle_bytes = resident_bytes()
        self._trimmed = time.monotonic()
        for warning in [*lowered, *_too_large(self._pipeline, settings)]:
            logger.warning("%s: %s", name, warning)
        for spec in self._pipeline.specs:
            logger.info("%s ready, space %s", spec.stem, spec.space_id)

    @property
    def meter(self) -> Meter:
        """What the endpoint counts."""
        return self._pipeline.meter

    def describe(self) -> dict[str, Any]:
        """What it serves: `encoders`, their specs as JSON objects."""
        return {"encoders": [json.loads(spec.to_json()) for spec in self._pipeline.specs]}

    def handle(self, rows: Sequence[Row]) -> list[Reply]:
        """Answers a batch: one reply for each row, in their order."""
        replies = self._pipeline.handle(rows)
        self._batches += 1
        now = time.monotonic()
        if self._batches % BATCHES_PER_TRIM == 0 or (
            now - self._trimmed >= SECONDS_BETWEEN_TRIMS
            and resident_bytes() > self._idle_bytes + BYTES_TO_TRIM
        ):
            trim_memory()
            self._trimmed = now
        return replies


def _too_large(pipeline: Pipeline, settings: Settings) -> list[str]:
    """Says of requests that the limits admit, and that their time does not suffice for."""
    allowed = settings.max_request_seconds
    return [
        f"{of.items} {of.what}, which {of.limit} admits, take {of.seconds:.0f} s here, and "
        f"max_request_seconds is {allowed}: some {int(of.items * allowed / of.seconds)} of them are "
        f"answered, the others told 'overloaded'; lower {of.limit} in the archive's YAML, give the worker "
        "more threads, or export another precision"
        for of in pipeline.largest_requests()
        if of.seconds > allowed
    ]
