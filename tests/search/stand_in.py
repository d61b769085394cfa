"""A client without a server: for what is to be seen of the indexer, not of an encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from clipserve.client import Client
from clipserve.encoder_spec import FloatArray
from clipserve.errors import RequestError, ServerError

DIM = 8


class StandIn:
    """Embeds by the bytes' hash, and fails where it is told to.

    Attributes:
        sent: SHA-256 of all that it was sent, in order.
        kills: contents that end its worker; after so many it is up again.
        refuses: contents that it answers with a status.
        is_down: whether it answers at all.
    """

    def __init__(self, space_id: str = "space", model: str = "model"):
        self.sent: list[str] = []
        self.kills: set[bytes] = set()
        self.refuses: dict[bytes, RequestError] = {}
        self.is_down = False
        self._spec = {"space_id": space_id, "model_id": model, "embedding_dim": DIM}

    def specs(self, endpoint: str) -> list[dict[str, Any]]:
        """Its one encoder."""
        return [self._spec]

    def require_space(self, space_id: str) -> None:
        """It has one space only."""

    def wait_ready(self, timeout: float, endpoints: Sequence[str]) -> None:
        """Does not wait."""
        if self.is_down:
            raise ServerError("cannot be reached")

    def embed_images(self, images: Sequence[bytes]) -> FloatArray:
        """float32 `[N, DIM]`."""
        [data] = images
        self.sent.append(hashlib.sha256(data).hexdigest())
        if self.is_down:
            raise ServerError("cannot be reached")
        if data in self.kills:
            raise ServerError("clip_image: status 500: the worker died")
        if data in self.refuses:
            raise self.refuses[data]
        seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
        return np.random.default_rng(seed).standard_normal((1, DIM), np.float32)

    def as_client(self) -> Client:
        """For who wants the real one."""
        return cast(Client, self)
