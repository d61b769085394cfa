"""What runs an endpoint: rows in, as many replies out.

A batch of rows is decoded, all its items are converted and embedded together, and each row gets its own
reply. Which server the rows come from is not known here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from clipserve.batching import attempt, embed_fairly, in_turns
from clipserve.cost import Budget, overloaded
from clipserve.embedders import CachedTextEmbedder, Embedder, ImageEmbedder, LargestRequest, TextEmbedder
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.endpoints import Endpoint
from clipserve.errors import RequestError
from clipserve.meter import Meter
from clipserve.settings import Settings
from clipserve.store import check_pair
from clipserve.wire.messages import Request, Result
from clipserve.wire.rows import Reply, Row

logger = logging.getLogger(__name__)


class Pipeline:
    """An endpoint with its encoders.

    Args:
        endpoint: a row of `ENDPOINTS`.
        encoders: of its modalities, in their order.

    Raises:
        SpecError: the encoders are not of one embedding space, or one does not fit its tokenizer.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        encoders: Sequence[ExportedImageEncoder | ExportedTextEncoder],
        settings: Settings,
    ):
        self.specs = [encoder.spec for encoder in encoders]
        for spec in self.specs[1:]:
            check_pair(self.specs[0], spec)
        self.meter = Meter()
        self._endpoint = endpoint
        self._settings = settings
        self._embedders = dict(zip(endpoint.modalities, map(self._embedder, encoders), strict=True))

    def _embedder(self, encoder: ExportedImageEncoder | ExportedTextEncoder) -> Embedder[Any]:
        if isinstance(encoder, ExportedImageEncoder):
            return ImageEmbedder(encoder, self._settings, self.meter)
        embedder = TextEmbedder(encoder, self._settings, self.meter)
        if not self._endpoint.remembers_texts:
            return embedder
        return CachedTextEmbedder(embedder, self._settings.text_cache_bytes, self.meter)

    def largest_requests(self) -> list[LargestRequest]:
        """What its limits admit at most."""
        return [
            self._embedders[of.modality].largest(of.limit, getattr(self._settings.requests, of.limit))
            for of in self._endpoint.inputs
        ]

    def handle(self, rows: Sequence[Row]) -> list[Reply]:
        """Answers a batch: one reply for each row, in their order.

        As many requests at once as fill a forward pass, until its time is up. What costs little goes first,
        as far as it is known: small bodies are decoded first, requests of few items answered first. So no
        request waits for one that takes all the time, or is told to come back for its sake.
        """
        budget = Budget.of(self._settings.max_seconds)
        self.meter.add("ClipBatches", 1)
        self.meter.add("ClipRequests", len(rows))
        replies: dict[int, Reply] = {}
        requests: dict[int, Request] = {}
        parsing = budget.within(self._settings.max_seconds / 2)
        for index in sorted(range(len(rows)), key=lambda index: rows[index].size):
            with self.meter.stage("parse"):
                request = self._decode(rows[index], parsing)
            if isinstance(request, RequestError):
                replies[index] = self._refuse(rows[index], request)
            else:
                requests[index] = request
        sizes = {index: sum(map(len, request.inputs)) for index, request in requests.items()}
        for turn in in_turns(sizes, self._settings.max_batch):
            if budget.left() > 0:
                asked = [(rows[index], requests.pop(index)) for index in turn]
                answers = self._answer(asked, budget.within(self._settings.max_request_seconds))
                replies.update(zip(turn, answers, strict=True))
            else:
                # The server counts these; the callers' clients ask again.
                replies |= {index: self._refuse(rows[index], overloaded()) for index in turn}
        return [replies[index] for index in range(len(rows))]

    def _decode(self, row: Row, budget: Budget) -> Request | RequestError:
        if budget.left() <= 0:
            return overloaded()
        read, limits = self._endpoint.read, self._settings.requests
        try:
            return attempt(lambda row: read(row, limits, self.specs[0]), row)
        except Exception as error:
            # A fault of ours, and this row's alone. Its message, or a traceback's, might quote the payload.
            logger.error("parsing a request failed with %s", type(error).__name__)
            return RequestError("internal_error", "the server failed at this request", 500)

    def _refuse(self, row: Row, error: RequestError) -> Reply:
        self.meter.error(error.code)
        return self._endpoint.refuse(error)

    def _answer(self, asked: Sequence[tuple[Row, Request]], budget: Budget) -> list[Reply]:
        inputs = [[request.inputs[i] for _, request in asked] for i in range(len(self._endpoint.inputs))]
        results: dict[int, list[list[Result]]] = {}
        # None is of use without the others: whichever has least goes first, with its share of the time.
        for i in sorted(range(len(inputs)), key=lambda i: sum(map(len, inputs[i]))):
            left = len(inputs) - len(results)
            share = Budget.of(budget.left() / left) if left > 1 else budget
            embed = self._embedders[self._endpoint.inputs[i].modality]
            results[i] = embed_fairly(embed, inputs[i], share, self.meter)
        with self.meter.stage("serialise"):
            return [
                self._endpoint.encode(self.specs[0], request, [results[i][place] for i in range(len(inputs))])
                for place, (row, request) in enumerate(asked)
            ]
