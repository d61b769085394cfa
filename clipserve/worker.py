"""A worker: one endpoint set up in a process of its own, whichever server hosts it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.memory import bound_free_memory, resident_bytes, trim_memory
from clipserve.meter import Meter
from clipserve.pipeline import Endpoint, SimilarityEndpoint, image_endpoint, text_endpoint
from clipserve.settings import Settings
from clipserve.store import Store
from clipserve.wire.rows import Reply, Row

logger = logging.getLogger(__name__)

BATCHES_PER_TRIM = 200
# Over what a worker has when it is ready; more than the heap may keep at its top.
BYTES_TO_TRIM = 64_000_000
# So that a worker that needs more than that for ordinary work spends a hundredth of its time on it at most.
SECONDS_BETWEEN_TRIMS = 1.0


class WorkerResources:
    """What an endpoint is made of: encoder files, a device and settings; see `Worker`."""

    def __init__(self, folder: Path, device: torch.device, settings: Settings, model: str | None):
        self.settings = settings
        self._encoders = Store.read(folder).model(model)
        self._device = device

    def image_encoder(self) -> ExportedImageEncoder:
        """The folder's image encoder for this worker's device."""
        file = self._encoders.best("image", self._device.type)
        return ExportedImageEncoder(file.path, self._device)

    def text_encoder(self) -> ExportedTextEncoder:
        """The folder's text encoder for this worker's device."""
        file = self._encoders.best("text", self._device.type)
        return ExportedTextEncoder(file.path, self._device)


def _image(resources: WorkerResources) -> Endpoint:
    return image_endpoint(resources.image_encoder(), resources.settings)


def _text(resources: WorkerResources) -> Endpoint:
    return text_endpoint(resources.text_encoder(), resources.settings)


def _similarity(resources: WorkerResources) -> Endpoint:
    return SimilarityEndpoint(resources.image_encoder(), resources.text_encoder(), resources.settings)


# Name of the endpoint -> what makes it.
BUILDERS: dict[str, Callable[[WorkerResources], Endpoint]] = {
    "clip_image": _image,
    "clip_text": _text,
    "clip_similarity": _similarity,
}


class Worker:
    """An endpoint that has proven its encoders on their golden inputs.

    Args:
        name: of the endpoint, one of `BUILDERS`.
        folder: where the encoder files are.
        device: where to run.
        response_seconds: after which the server takes this worker for stuck, and replaces it.
        model: id of the model; None where the folder holds one only.

    Raises:
        SpecError: nothing in the folder may run here, or it holds several models.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        device: torch.device,
        settings: Settings,
        response_seconds: float,
        model: str | None = None,
    ):
        bound_free_memory()
        settings, lowered = settings.within(response_seconds)
        torch.set_num_threads(settings.threads)
        self._endpoint = BUILDERS[name](WorkerResources(folder, device, settings, model))
        self._batches = 0
        self._idle_bytes = resident_bytes()
        self._trimmed = time.monotonic()
        for warning in [*lowered, *_too_large(self._endpoint, settings)]:
            logger.warning("%s: %s", name, warning)
        for spec in self._endpoint.specs:
            logger.info("%s ready, space %s", spec.stem, spec.space_id)

    @property
    def meter(self) -> Meter:
        """What the endpoint counts."""
        return self._endpoint.meter

    def describe(self) -> dict[str, Any]:
        """What it serves: `encoders`, their specs as JSON objects."""
        return {"encoders": [json.loads(spec.to_json()) for spec in self._endpoint.specs]}

    def handle(self, rows: Sequence[Row]) -> list[Reply]:
        """Answers a batch: one reply for each row, in their order."""
        replies = self._endpoint.handle(rows)
        self._batches += 1
        now = time.monotonic()
        if self._batches % BATCHES_PER_TRIM == 0 or (
            now - self._trimmed >= SECONDS_BETWEEN_TRIMS
            and resident_bytes() > self._idle_bytes + BYTES_TO_TRIM
        ):
            trim_memory()
            self._trimmed = now
        return replies


def _too_large(endpoint: Endpoint, settings: Settings) -> list[str]:
    """Says of requests that the limits admit, and that their time does not suffice for."""
    allowed = settings.max_request_seconds
    return [
        f"{of.items} {of.what}, which {of.limit} admits, take {of.seconds:.0f} s here, and "
        f"max_request_seconds is {allowed}: some {int(of.items * allowed / of.seconds)} of them are "
        f"answered, the others told 'overloaded'; lower {of.limit} in the archive's YAML, give the worker "
        "more threads, or export another precision"
        for of in endpoint.largest_requests()
        if of.seconds > allowed
    ]
