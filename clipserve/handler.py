"""Batch mechanics: rows in, as many replies out, one bad item never hurting a neighbour.

Three endpoints on one mechanism. A batch of rows is parsed, all its items are converted and embedded
together, and each row gets its own reply; an item that fails is carried along as its `RequestError`. Which
server the rows come from is not known here.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Generic, Protocol, TypeVar

from clipserve.encoder import TracedImageEncoder, TracedTextEncoder, check_pair
from clipserve.encoder_spec import EncoderSpec
from clipserve.errors import RequestError
from clipserve.images import PixelArray, decode_image, preprocess
from clipserve.meter import Meter
from clipserve.protocol import (
    Embedded,
    EmbeddingRequest,
    Reply,
    RequestLimits,
    Row,
    SimilarityRequest,
    Usage,
    embedding_reply,
    error_reply,
    parse_image_request,
    parse_similarity_request,
    parse_text_request,
    similarity_reply,
)
from clipserve.settings import Settings
from clipserve.tokens import Tokens, length_groups

ItemT = TypeVar("ItemT")
RequestT = TypeVar("RequestT")
ValueT = TypeVar("ValueT")


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


class ImageEmbedder:
    """Turns encoded pictures into embeddings."""

    def __init__(self, encoder: TracedImageEncoder, settings: Settings, meter: Meter | None = None):
        self._encoder = encoder
        self._settings = settings
        self._meter = Meter() if meter is None else meter
        # One thread: each takes up to `max_memory` to decode a picture, and that would add up.
        self._decoder = ThreadPoolExecutor(1, "decode")

    def __call__(self, items: Sequence[bytes | RequestError]) -> list[Embedded | RequestError]:
        """Embeds each picture, or says what is wrong with it."""
        results: list[Embedded | RequestError] = []
        # The next pictures are decoded while those before them are in the forward pass.
        pixels = self._decoder.map(partial(_attempt, self._pixels), items)
        while batch := list(islice(pixels, self._settings.max_batch)):
            results += _embed_valid(batch, self._embed)
        return results

    def _pixels(self, data: bytes) -> PixelArray:
        limits, preprocessing = self._settings.images, self._encoder.preprocessing
        with self._meter.stage("decode"):
            image = decode_image(
                data,
                limits,
                shortest_edge=preprocessing.shortest_edge,
                draft_factor=self._settings.draft_factor,
                color=self._settings.color,
            )
            return preprocess(image, preprocessing, limits)

    def _embed(self, pixels: Sequence[PixelArray]) -> list[Embedded]:
        self._meter.add("ClipForwardPasses", 1)
        with self._meter.stage("inference"):
            return [Embedded(embedding) for embedding in self._encoder.embed(pixels)]


class TextEmbedder:
    """Turns texts into embeddings."""

    def __init__(self, encoder: TracedTextEncoder, settings: Settings, meter: Meter | None = None):
        self._encoder = encoder
        self._settings = settings
        self._meter = Meter() if meter is None else meter

    def __call__(self, items: Sequence[str | RequestError]) -> list[Embedded | RequestError]:
        """Embeds each text, or says what is wrong with it."""
        results: dict[int, Embedded | RequestError] = {}
        valid: list[tuple[int, Tokens]] = []
        for index, item in enumerate(items):
            tokens = _attempt(self._tokens, item)
            if isinstance(tokens, RequestError):
                results[index] = tokens
            else:
                valid.append((index, tokens))
        for group in length_groups([len(tokens.ids) for _, tokens in valid], self._settings.max_batch):
            embedded = self._embed([valid[i][1] for i in group])
            results.update(zip((valid[i][0] for i in group), embedded, strict=True))
        return [results[index] for index in range(len(items))]

    def _tokens(self, text: str) -> Tokens:
        with self._meter.stage("tokenise"):
            return self._encoder.tokenizer.tokenize(text)

    def _embed(self, tokens: Sequence[Tokens]) -> list[Embedded]:
        self._meter.add("ClipForwardPasses", 1)
        self._meter.add("ClipTextsTruncated", sum(t.truncated for t in tokens))
        with self._meter.stage("inference"):
            embeddings = self._encoder.embed(*self._encoder.tokenizer.pad([t.ids for t in tokens]))
        return [
            Embedded(embedding, Usage(len(t.ids), int(t.truncated), t.unknown))
            for embedding, t in zip(embeddings, tokens, strict=True)
        ]


class CachedTextEmbedder:
    """A `TextEmbedder` that remembers the texts it has seen, the least recently used forgotten first."""

    def __init__(self, embedder: TextEmbedder, capacity: int):
        self._embedder = embedder
        self._capacity = capacity
        self._cache: OrderedDict[str, Embedded] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def __call__(self, items: Sequence[str | RequestError]) -> list[Embedded | RequestError]:
        """Embeds each text, or says what is wrong with it."""
        texts = [item for item in items if isinstance(item, str)]
        fresh = [text for text in dict.fromkeys(texts) if text not in self._cache]
        self.misses += len(fresh)
        self.hits += len(texts) - len(fresh)
        known: dict[str, Embedded | RequestError] = dict(zip(fresh, self._embedder(fresh), strict=True))
        for text in texts:
            if text in self._cache:
                self._cache.move_to_end(text)
                known[text] = self._cache[text]
        for text in fresh:
            result = known[text]
            if isinstance(result, Embedded):
                # A copy: a row of a batch would keep the whole batch's memory alive.
                self._cache[text] = Embedded(result.embedding.copy(), result.usage)
        while len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return [known[item] if isinstance(item, str) else item for item in items]


class EmbeddingEndpoint(Generic[ItemT]):
    """`clip_image` and `clip_text`: rows of items to rows of embeddings."""

    def __init__(
        self,
        spec: EncoderSpec,
        parse: Callable[[Row, RequestLimits], EmbeddingRequest[ItemT]],
        embed: Callable[[Sequence[ItemT | RequestError]], list[Embedded | RequestError]],
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

    def handle(self, rows: Sequence[Row]) -> list[Reply]:
        """Answers a batch: one reply for each row, in their order."""
        requests = _parse_rows(rows, self._parse, self._settings.requests, self.meter)
        return _in_turns(requests, lambda r: len(r.items), self._answer, self._settings, self.meter)

    def _answer(self, requests: Sequence[EmbeddingRequest[ItemT]]) -> list[Reply]:
        results = iter(_noted(self._embed([i for r in requests for i in r.items]), self.meter))
        with self.meter.stage("serialise"):
            return [
                embedding_reply(self._spec, [next(results) for _ in r.items], r.encoding_format)
                for r in requests
            ]


class SimilarityEndpoint:
    """`clip_similarity`: pictures against texts, both encoders in one worker."""

    def __init__(
        self, image_encoder: TracedImageEncoder, text_encoder: TracedTextEncoder, settings: Settings
    ):
        check_pair(image_encoder.spec, text_encoder.spec)
        self.specs = [image_encoder.spec, text_encoder.spec]
        self.meter = Meter()
        self._embed_images = ImageEmbedder(image_encoder, settings, self.meter)
        self._embed_texts = CachedTextEmbedder(
            TextEmbedder(text_encoder, settings, self.meter), settings.cached_texts
        )
        self._settings = settings

    def handle(self, rows: Sequence[Row]) -> list[Reply]:
        """Answers a batch: one reply for each row, in their order."""
        requests = _parse_rows(rows, parse_similarity_request, self._settings.requests, self.meter)
        return _in_turns(
            requests, lambda r: len(r.images) + len(r.texts), self._answer, self._settings, self.meter
        )

    def _answer(self, requests: Sequence[SimilarityRequest]) -> list[Reply]:
        cache = self._embed_texts
        images = iter(_noted(self._embed_images([i for r in requests for i in r.images]), self.meter))
        texts = iter(_noted(cache([t for r in requests for t in r.texts]), self.meter))
        self.meter.add("ClipTextCacheHits", cache.hits)
        self.meter.add("ClipTextCacheMisses", cache.misses)
        cache.hits = cache.misses = 0
        with self.meter.stage("serialise"):
            return [
                similarity_reply(
                    self.specs[0], [next(images) for _ in r.images], [next(texts) for _ in r.texts]
                )
                for r in requests
            ]


def image_endpoint(encoder: TracedImageEncoder, settings: Settings) -> Endpoint:
    """The `clip_image` endpoint."""
    meter = Meter()
    embed = ImageEmbedder(encoder, settings, meter)
    return EmbeddingEndpoint(encoder.spec, parse_image_request, embed, settings, meter)


def text_endpoint(encoder: TracedTextEncoder, settings: Settings) -> Endpoint:
    """The `clip_text` endpoint."""
    meter = Meter()
    embed = TextEmbedder(encoder, settings, meter)
    return EmbeddingEndpoint(encoder.spec, parse_text_request, embed, settings, meter)


def _parse_rows(
    rows: Sequence[Row],
    parse: Callable[[Row, RequestLimits], RequestT],
    limits: RequestLimits,
    meter: Meter,
) -> list[RequestT | RequestError]:
    meter.add("ClipBatches", 1)
    meter.add("ClipRequests", len(rows))
    with meter.stage("parse"):
        return [_attempt(lambda row: parse(row, limits), row) for row in rows]


def _in_turns(
    requests: Sequence[RequestT | RequestError],
    size: Callable[[RequestT], int],
    answer: Callable[[Sequence[RequestT]], list[Reply]],
    settings: Settings,
    meter: Meter,
) -> list[Reply]:
    """Answers requests in their order, as many at once as fill a forward pass, until the time is up."""
    deadline = time.monotonic() + settings.max_seconds
    replies: dict[int, Reply] = {}
    turn: list[tuple[int, RequestT]] = []
    items = 0

    def answer_turn() -> None:
        nonlocal turn, items
        if turn and time.monotonic() > deadline:
            # The server counts this one; the caller's client asks again.
            overloaded = RequestError(
                "overloaded",
                f"the requests before this one took more than {settings.max_seconds} s; ask again, or send "
                "fewer items at once",
                503,
            )
            meter.error(overloaded.code)
            replies.update((index, error_reply(overloaded)) for index, _ in turn)
        elif turn:
            replies.update(zip((i for i, _ in turn), answer([r for _, r in turn]), strict=True))
        turn, items = [], 0

    for index, request in enumerate(requests):
        if isinstance(request, RequestError):
            meter.error(request.code)
            replies[index] = error_reply(request)
            continue
        if turn and items + size(request) > settings.max_batch:
            answer_turn()
        turn.append((index, request))
        items += size(request)
    answer_turn()
    return [replies[index] for index in range(len(requests))]


def _noted(results: Sequence[Embedded | RequestError], meter: Meter) -> Sequence[Embedded | RequestError]:
    meter.add("ClipItems", len(results))
    for result in results:
        if isinstance(result, RequestError):
            meter.error(result.code)
    return results


def _attempt(convert: Callable[[ItemT], ValueT], item: ItemT | RequestError) -> ValueT | RequestError:
    if isinstance(item, RequestError):
        return item
    try:
        return convert(item)
    except RequestError as error:
        # Anew: this one's traceback, and its cause's, keep alive what was decoded when it was raised, and
        # with it 100 MB for each large picture of the batch that is cut short.
        return RequestError(error.code, error.message, error.status, error.index)


def _embed_valid(
    values: Sequence[ValueT | RequestError], embed: Callable[[Sequence[ValueT]], list[Embedded]]
) -> list[Embedded | RequestError]:
    """Embeds in one pass what could be converted; errors stay where they are."""
    valid = [value for value in values if not isinstance(value, RequestError)]
    embedded = iter(embed(valid)) if valid else iter(())
    return [value if isinstance(value, RequestError) else next(embedded) for value in values]
