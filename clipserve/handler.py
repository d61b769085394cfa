"""Batch mechanics: rows in, as many replies out, one bad item never hurting a neighbour.

Three endpoints on one mechanism. A batch of rows is parsed, all its items are converted and embedded
together, and each row gets its own reply; an item that fails is carried along as its `RequestError`. Which
server the rows come from is not known here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from clipserve.encoder import TracedImageEncoder, TracedTextEncoder, check_pair
from clipserve.encoder_spec import EncoderSpec
from clipserve.errors import RequestError, SpecError
from clipserve.images import ImageLimits, PixelArray, decode_image, preprocess
from clipserve.protocol import (
    Embedded,
    EmbeddingRequest,
    Reply,
    RequestLimits,
    Row,
    Usage,
    embedding_reply,
    error_reply,
    parse_image_request,
    parse_similarity_request,
    parse_text_request,
    similarity_reply,
)
from clipserve.tokens import Tokens

ItemT = TypeVar("ItemT")
RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Settings:
    """The `handler` section of an archive's YAML.

    Attributes:
        threads: intra-op threads of one worker; workers x threads should not exceed the cores.
        max_batch: the most items that one forward pass takes.
        cached_texts: how many text embeddings the similarity endpoint remembers.
        images, requests: limits, see their classes.
    """

    threads: int = 1
    max_batch: int = 32
    cached_texts: int = 10_000
    images: ImageLimits = field(default_factory=ImageLimits)
    requests: RequestLimits = field(default_factory=RequestLimits)

    @classmethod
    def from_mapping(cls, section: Mapping[str, Any]) -> Settings:
        """Reads the section as YAML gives it: flat, integers, `formats` a list.

        Raises:
            SpecError: an unknown key, or a value that is not a positive integer.
        """
        groups: dict[str, dict[str, Any]] = {"": {}, "images": {}, "requests": {}}
        places = {
            **dict.fromkeys(("threads", "max_batch", "cached_texts"), ""),
            **dict.fromkeys(ImageLimits.__dataclass_fields__, "images"),
            **dict.fromkeys(RequestLimits.__dataclass_fields__, "requests"),
        }
        for key, value in section.items():
            if key not in places:
                raise SpecError(f"handler setting {key!r} is unknown; allowed are {', '.join(places)}")
            if key == "formats":
                value = tuple(value)
            elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SpecError(f"handler setting {key}: {value!r}, should be a whole number >= 1")
            groups[places[key]][key] = value
        return cls(
            images=ImageLimits(**groups["images"]),
            requests=RequestLimits(**groups["requests"]),
            **groups[""],
        )


class Endpoint(Protocol):
    """What a server needs of an endpoint."""

    @property
    def specs(self) -> list[EncoderSpec]:
        """The specs of its encoders."""

    def handle(self, rows: Sequence[Row]) -> list[Reply]:
        """Answers a batch: one reply for each row, in their order."""

    def take_counts(self) -> dict[str, int]:
        """Counters since the last call, by metric name."""


class ImageEmbedder:
    """Turns encoded pictures into embeddings."""

    def __init__(self, encoder: TracedImageEncoder, settings: Settings):
        self._encoder = encoder
        self._settings = settings

    def __call__(self, items: Sequence[bytes | RequestError]) -> list[Embedded | RequestError]:
        """Embeds each picture, or says what is wrong with it."""
        return _in_batches(items, self._pixels, self._embed, self._settings.max_batch)

    def _pixels(self, data: bytes) -> PixelArray:
        limits = self._settings.images
        return preprocess(decode_image(data, limits), self._encoder.preprocessing, limits)

    def _embed(self, pixels: Sequence[PixelArray]) -> list[Embedded]:
        return [Embedded(embedding) for embedding in self._encoder.embed(pixels)]


class TextEmbedder:
    """Turns texts into embeddings."""

    def __init__(self, encoder: TracedTextEncoder, settings: Settings):
        self._encoder = encoder
        self._settings = settings

    def __call__(self, items: Sequence[str | RequestError]) -> list[Embedded | RequestError]:
        """Embeds each text, or says what is wrong with it."""
        # Sorted by length, so that short texts are not padded to a long neighbour.
        return _in_batches(
            items,
            self._encoder.tokenizer.tokenize,
            self._embed,
            self._settings.max_batch,
            key=lambda tokens: len(tokens.ids),
        )

    def _embed(self, tokens: Sequence[Tokens]) -> list[Embedded]:
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
    ):
        self._spec = spec
        self._parse = parse
        self._embed = embed
        self._limits = settings.requests

    @property
    def specs(self) -> list[EncoderSpec]:
        """The spec of the one encoder."""
        return [self._spec]

    def handle(self, rows: Sequence[Row]) -> list[Reply]:
        """Answers a batch: one reply for each row, in their order."""
        requests = _parse_rows(rows, self._parse, self._limits)
        results = iter(self._embed([i for r in _valid(requests) for i in r.items]))
        return [
            error_reply(request)
            if isinstance(request, RequestError)
            else embedding_reply(self._spec, [next(results) for _ in request.items], request.encoding_format)
            for request in requests
        ]

    def take_counts(self) -> dict[str, int]:
        """No counters."""
        return {}


class SimilarityEndpoint:
    """`clip_similarity`: pictures against texts, both encoders in one worker."""

    def __init__(
        self, image_encoder: TracedImageEncoder, text_encoder: TracedTextEncoder, settings: Settings
    ):
        check_pair(image_encoder.spec, text_encoder.spec)
        self.specs = [image_encoder.spec, text_encoder.spec]
        self._embed_images = ImageEmbedder(image_encoder, settings)
        self._embed_texts = CachedTextEmbedder(TextEmbedder(text_encoder, settings), settings.cached_texts)
        self._limits = settings.requests

    def handle(self, rows: Sequence[Row]) -> list[Reply]:
        """Answers a batch: one reply for each row, in their order."""
        requests = _parse_rows(rows, parse_similarity_request, self._limits)
        valid = _valid(requests)
        images = iter(self._embed_images([i for r in valid for i in r.images]))
        texts = iter(self._embed_texts([t for r in valid for t in r.texts]))
        return [
            error_reply(request)
            if isinstance(request, RequestError)
            else similarity_reply(
                self.specs[0],
                [next(images) for _ in request.images],
                [next(texts) for _ in request.texts],
            )
            for request in requests
        ]

    def take_counts(self) -> dict[str, int]:
        """Text cache hits and misses since the last call."""
        cache = self._embed_texts
        counts = {"ClipTextCacheHits": cache.hits, "ClipTextCacheMisses": cache.misses}
        cache.hits = cache.misses = 0
        return counts


def image_endpoint(encoder: TracedImageEncoder, settings: Settings) -> Endpoint:
    """The `clip_image` endpoint."""
    return EmbeddingEndpoint(encoder.spec, parse_image_request, ImageEmbedder(encoder, settings), settings)


def text_endpoint(encoder: TracedTextEncoder, settings: Settings) -> Endpoint:
    """The `clip_text` endpoint."""
    return EmbeddingEndpoint(encoder.spec, parse_text_request, TextEmbedder(encoder, settings), settings)


def _parse_rows(
    rows: Sequence[Row], parse: Callable[[Row, RequestLimits], RequestT], limits: RequestLimits
) -> list[RequestT | RequestError]:
    requests: list[RequestT | RequestError] = []
    for row in rows:
        try:
            requests.append(parse(row, limits))
        except RequestError as error:
            requests.append(error)
    return requests


def _valid(requests: Sequence[RequestT | RequestError]) -> list[RequestT]:
    return [request for request in requests if not isinstance(request, RequestError)]


def _in_batches(
    items: Sequence[ItemT | RequestError],
    convert: Callable[[ItemT], RequestT],
    embed: Callable[[Sequence[RequestT]], list[ResultT]],
    max_batch: int,
    key: Callable[[RequestT], int] | None = None,
) -> list[ResultT | RequestError]:
    """Converts each item and embeds those that convert, `max_batch` at a time, in the order of `key`."""
    results: dict[int, ResultT | RequestError] = {}
    converted: list[tuple[int, RequestT]] = []
    for index, item in enumerate(items):
        try:
            if isinstance(item, RequestError):
                raise item
            converted.append((index, convert(item)))
        except RequestError as error:
            results[index] = error
    if key is not None:
        converted.sort(key=lambda pair: key(pair[1]))
    for start in range(0, len(converted), max_batch):
        batch = converted[start : start + max_batch]
        embedded = embed([value for _, value in batch])
        results.update(zip((index for index, _ in batch), embedded, strict=True))
    return [results[index] for index in range(len(items))]
