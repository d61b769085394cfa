"""The endpoints: rows in, as many replies out.

Three endpoints on one mechanism. A batch of rows is decoded, all its items are converted and embedded
together, and each row gets its own reply. Which server the rows come from is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from clipserve.batching import embed_fairly, in_turns
from clipserve.cost import Budget
from clipserve.embedders import CachedTextEmbedder, Embedder, ImageEmbedder, LargestRequest, TextEmbedder
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import EncoderSpec
from clipserve.meter import Meter
from clipserve.settings import Settings
from clipserve.store import check_pair
from clipserve.wire.messages import EmbeddingRequest, SimilarityRequest
from clipserve.wire.native import (
    decode_images,
    decode_similarity,
    decode_texts,
    encode_embeddings,
    encode_similarity,
)
from clipserve.wire.rows import Reply, RequestLimits, Row

ItemT = TypeVar("ItemT")


class Endpoint(Protocol):
    """What a server needs of an endpoint."""

    @property
    def specs(self) -> list[EncoderSpec]:
        """The specs of its encoders."""

    def handle(self, rows: Sequence[Row]) -> list[Reply]:
        """Answers a batch: one reply for each row, in their order."""

    @property
    def meter(self) -> Meter:
        """What it counts."""

    def largest_requests(self) -> list[LargestRequest]:
        """What its limits admit at most."""


class EmbeddingEndpoint(Generic[ItemT]):
    """`clip_image` and `clip_text`: rows of items to rows of embeddings."""

    def __init__(
        self,
        spec: EncoderSpec,
        parse: Callable[[Row, RequestLimits], EmbeddingRequest[ItemT]],
        embed: Embedder[ItemT],
        settings: Settings,
        meter: Meter,
    ):
        self._spec = spec
        self._parse = parse
        self._embed = embed
        self._settings = settings
        self.meter = meter

    @property
    def specs(self) -> list[EncoderSpec]:
        """The spec of the one encoder."""
        return [self._spec]

    def largest_requests(self) -> list[LargestRequest]:
        """What its limits admit at most."""
        return [self._embed.largest("max_items", self._settings.requests.max_items)]

    def handle(self, rows: Sequence[Row]) -> list[Reply]:
        """Answers a batch: one reply for each row, in their order."""
        return in_turns(rows, self._parse, lambda r: len(r.items), self._answer, self._settings, self.meter)

    def _answer(self, requests: Sequence[EmbeddingRequest[ItemT]], budget: Budget) -> list[Reply]:
        results = embed_fairly(self._embed, [r.items for r in requests], budget, self.meter)
        with self.meter.stage("serialise"):
            return [
                encode_embeddings(self._spec, of_one, request.encoding_format)
                for request, of_one in zip(requests, results, strict=True)
            ]


class SimilarityEndpoint:
    """`clip_similarity`: pictures against texts, both encoders in one worker."""

    def __init__(
        self, image_encoder: ExportedImageEncoder, text_encoder: ExportedTextEncoder, settings: Settings
    ):
        check_pair(image_encoder.spec, text_encoder.spec)
        self.specs = [image_encoder.spec, text_encoder.spec]
        self.meter = Meter()
        self._embed_images = ImageEmbedder(image_encoder, settings, self.meter)
        self._embed_texts = CachedTextEmbedder(
            TextEmbedder(text_encoder, settings, self.meter), settings.text_cache_bytes
        )
        self._settings = settings

    def largest_requests(self) -> list[LargestRequest]:
        """What its limits admit at most."""
        limits = self._settings.requests
        return [
            self._embed_images.largest("max_items", limits.max_items),
            self._embed_texts.largest("max_texts", limits.max_texts),
        ]

    def handle(self, rows: Sequence[Row]) -> list[Reply]:
        """Answers a batch: one reply for each row, in their order."""
        return in_turns(
            rows,
            decode_similarity,
            lambda r: len(r.images) + len(r.texts),
            self._answer,
            self._settings,
            self.meter,
        )

    def _answer(self, requests: Sequence[SimilarityRequest], budget: Budget) -> list[Reply]:
        images, texts = [r.images for r in requests], [r.texts for r in requests]
        # The one is of no use without the other: whichever is less goes first, with half of the time.
        half = Budget.of(budget.left() / 2)
        if sum(map(len, images)) <= sum(map(len, texts)):
            of_images = embed_fairly(self._embed_images, images, half, self.meter)
            of_texts = embed_fairly(self._embed_texts, texts, budget, self.meter)
        else:
            of_texts = embed_fairly(self._embed_texts, texts, half, self.meter)
            of_images = embed_fairly(self._embed_images, images, budget, self.meter)
        cache = self._embed_texts
        self.meter.add("ClipTextCacheHits", cache.hits)
        self.meter.add("ClipTextCacheMisses", cache.misses)
        cache.hits = cache.misses = 0
        with self.meter.stage("serialise"):
            return [
                encode_similarity(self.specs[0], *of_one) for of_one in zip(of_images, of_texts, strict=True)
            ]


def image_endpoint(encoder: ExportedImageEncoder, settings: Settings) -> Endpoint:
    """The `clip_image` endpoint."""
    meter = Meter()
    embed = ImageEmbedder(encoder, settings, meter)
    return EmbeddingEndpoint[bytes](encoder.spec, decode_images, embed, settings, meter)


def text_endpoint(encoder: ExportedTextEncoder, settings: Settings) -> Endpoint:
    """The `clip_text` endpoint."""
    meter = Meter()
    embed = TextEmbedder(encoder, settings, meter)
    return EmbeddingEndpoint[str](encoder.spec, decode_texts, embed, settings, meter)
