"""A server without a network: for what is to be seen of the indexer, not of an encoder."""

from __future__ import annotations

import base64
import hashlib
import json

import httpx
import numpy as np

from clipserve.certificate import Golden, ParityBound, ParityCertificate
from clipserve.client import Client
from clipserve.encoder_spec import (
    SCHEMA_VERSION,
    EncoderSpec,
    FloatArray,
    Score,
    encode_vector,
)
from clipserve.endpoint_status import READY, EndpointStatus, Worker
from clipserve.errors import RequestError
from clipserve.preprocessing import ImagePreprocessing

DIM = 8
GOLDEN = b"golden"


class StandIn:
    """Embeds by the bytes' hash, and fails where it is told to.

    Attributes:
        sent: SHA-256 of all that it was sent, in order, but for the golden input.
        kills: contents that end its worker; after so many it is up again.
        refuses: contents that it answers with a status.
        is_down: whether it has no worker, and breaks off every call.
    """

    def __init__(self, space_id: str = "space", model: str = "model"):
        self.sent: list[str] = []
        self.kills: set[bytes] = set()
        self.refuses: dict[bytes, RequestError] = {}
        self.is_down = False
        self._spec = EncoderSpec(
            schema_version=SCHEMA_VERSION,
            format="torchscript",
            cpu_capability=None,
            model_id=model,
            checkpoint="none",
            license=None,
            modality="image",
            embedding_dim=DIM,
            normalized=True,
            device="cpu",
            precision="fp32",
            image=ImagePreprocessing(8, 8, 8, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            text=None,
            score=Score("softmax", 100.0),
            checkpoint_sha256="c",
            artifact_sha256="a",
            space_id=space_id,
            versions={},
            certificate=ParityCertificate(
                ParityBound(1e-5, None),
                0.0,
                1.0,
                1.0,
                (),
                Golden(base64.b64encode(GOLDEN).decode(), encode_vector(_vector(GOLDEN))),
            ),
        )

    def as_client(self) -> Client:
        """A client of it, which is told at once what goes wrong."""
        http = httpx.Client(transport=httpx.MockTransport(self._answer), trust_env=False)
        return Client(tokens=None, http=http, retries=False)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            workers = [] if self.is_down else [Worker(1, READY)]
            status = EndpointStatus(workers, 1, [json.loads(self._spec.to_json())])
            return httpx.Response(200, json=status.to_json())
        [item] = json.loads(request.content)["input"]
        data = base64.b64decode(item["image"])
        if data != GOLDEN:
            self.sent.append(hashlib.sha256(data).hexdigest())
        if self.is_down:
            raise httpx.ConnectError("connection refused", request=request)
        if data in self.kills:
            return httpx.Response(500, json={"code": 500, "message": "the worker died"})
        if data in self.refuses:
            refusal = self.refuses[data]
            return httpx.Response(refusal.status, json={"error": refusal.to_json()})
        entry = {"object": "embedding", "index": 0, "embedding": encode_vector(_vector(data))}
        answer = {"space_id": self._spec.space_id, "data": [entry], "usage": {}}
        return httpx.Response(200, json=answer)


def _vector(data: bytes) -> FloatArray:
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(DIM, np.float32)
