"""A worker: one endpoint set up in a process of its own, whichever server hosts it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from clipserve.encoder import TracedImageEncoder, TracedTextEncoder, choose_variant
from clipserve.handler import Endpoint, SimilarityEndpoint, image_endpoint, text_endpoint
from clipserve.memory import bound_free_memory, trim_memory
from clipserve.meter import Meter
from clipserve.protocol import Reply, Row
from clipserve.settings import Settings

logger = logging.getLogger(__name__)

BATCHES_PER_TRIM = 200


class WorkerResources:
    """What an endpoint is made of: encoder files, a device and settings; see `Worker`."""

    def __init__(self, folder: Path, device: torch.device, settings: Settings, model: str | None):
        self.settings = settings
        self._folder = folder
        self._device = device
        self._model = model

    def image_encoder(self) -> TracedImageEncoder:
        """The folder's image encoder for this worker's device."""
        path = choose_variant(self._folder, "image", self._device, self._model)
        return TracedImageEncoder(path, self._device)

    def text_encoder(self) -> TracedTextEncoder:
        """The folder's text encoder for this worker's device."""
        path = choose_variant(self._folder, "text", self._device, self._model)
        return TracedTextEncoder(path, self._device)


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
        model: id of the model; None where the folder holds one only.

    Raises:
        SpecError: nothing in the folder may run here, or it holds several models.
    """

    def __init__(
        self, name: str, folder: Path, device: torch.device, settings: Settings, model: str | None = None
    ):
        bound_free_memory()
        torch.set_num_threads(settings.threads)
        self._endpoint = BUILDERS[name](WorkerResources(folder, device, settings, model))
        self._batches = 0
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
        if self._batches % BATCHES_PER_TRIM == 0:
            trim_memory()
        return replies
