"""Batch mechanics: rows in, as many replies out, one bad item never hurting a neighbour.

Three endpoints on one mechanism. A batch of rows is parsed, all its items are converted and embedded
together, and each row gets its own reply; an item that fails is carried along as its `RequestError`. Which
server the rows come from is not known here.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat
from typing import Generic, Protocol, TypeVar

import numpy as np

from clipserve.cost import Budget, PassCost, overloaded
from clipserve.encoder import TracedImageEncoder, TracedTextEncoder
from clipserve.encoder_spec import EncoderSpec, FloatArray
from clipserve.errors import RequestError, SpecError
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
from clipserve.store import check_pair
from clipserve.tokens import PASS_TOKENS, Tokens, length_groups

logger = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
InputT = TypeVar("InputT", contravariant=True)
RequestT = TypeVar("RequestT")
ValueT = TypeVar("ValueT")
Result = Embedded | RequestError

# What a remembered text takes beside its embedding: hash, entry, `Embedded`, `Usage` and NumPy's header
# (tracemalloc, over 10,000 of them).
ENTRY_BYTES = 500


@dataclass(frozen=True)
class LargestRequest:
    """What a limit admits at most.

    Attributes:
        limit: its name among the settings.
        items: how many.
        what: they are, in words.
        seconds: that their forward passes take.
    """

    limit: str
    items: int
    what: str
    seconds: float


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


class ImageEmbedder:
    """Turns encoded pictures into embeddings."""

    def __init__(self, encoder: TracedImageEncoder, settings: Settings, meter: Meter | None = None):
        self._encoder = encoder
        self._settings = settings
        self._meter = Meter() if meter is None else meter
        self._cost = PassCost()
        # One thread: each takes up to `max_memory` to decode a picture, and that would add up.
        self._decoder = ThreadPoolExecutor(1, "decode")
        preprocessing = encoder.preprocessing
        black = np.zeros((3, preprocessing.crop_height, preprocessing.crop_width), np.uint8)
        with self._cost.measure(1):
            encoder.embed([black])

    def __call__(self, items: Sequence[bytes | RequestError], budget: Budget) -> list[Result]:
        """Embeds each picture, or says what is wrong with it; in their order, as long as there is time."""
        return _in_rounds(items, self._round, self._cost, budget)

    def _round(self, items: Sequence[bytes | RequestError], budget: Budget) -> list[Result]:
        results: list[Result] = []
        seconds = self._cost.seconds(1)
        # The next pictures are decoded while those before them are in the forward pass.
        pixels = self._decoder.map(partial(self._decode, budget, seconds), items)
        while batch := list(islice(pixels, self._settings.max_batch)):
            valid = [value for value in batch if not isinstance(value, RequestError)]
            # Even if decoding has overrun: what is decoded should not have been decoded for nothing.
            embedded = iter(_one_or_many(valid, self._embed, self._encoder.check_golden, budget))
            results += [value if isinstance(value, RequestError) else next(embedded) for value in batch]
            budget.give_back(seconds * len(valid))
        return results

    def largest(self, limit: str, items: int) -> LargestRequest:
        """What the forward passes of so many pictures take; decoding them takes as long again and more."""
        return LargestRequest(limit, items, "pictures", self._cost.seconds(items))

    def _decode(
        self, budget: Budget, seconds: float, item: bytes | RequestError
    ) -> PixelArray | RequestError:
        if isinstance(item, RequestError):
            return item
        if not budget.set_aside(seconds):
            return overloaded()
        pixels = _attempt(self._pixels, item)
        if isinstance(pixels, RequestError):
            budget.give_back(seconds)
        return pixels

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

    def _embed(self, pixels: Sequence[PixelArray]) -> list[Result]:
        self._meter.add("ClipForwardPasses", 1)
        with self._meter.stage("inference"), self._cost.measure(len(pixels)):
            embeddings = self._encoder.embed(pixels)
        return _results(embeddings, [Usage()] * len(pixels))


class TextEmbedder:
    """Turns texts into embeddings.

    Raises:
        SpecError: the tokenizer has ids that the encoder has no embedding for.
    """

    def __init__(self, encoder: TracedTextEncoder, settings: Settings, meter: Meter | None = None):
        self._encoder = encoder
        self._settings = settings
        self._meter = Meter() if meter is None else meter
        self._cost = PassCost()
        self._longest = encoder.tokenizer.context_length
        largest = encoder.tokenizer.largest_id
        try:
            with self._cost.measure(self._longest + PASS_TOKENS):
                encoder.embed(*encoder.tokenizer.pad([[largest] * self._longest]))
        except (RuntimeError, IndexError) as error:
            reason = str(error).partition("\n")[0]
            raise SpecError(
                f"{encoder.path}: fails at {self._longest} tokens of id {largest}, which its tokenizer may "
                f"give ({reason}); resize the checkpoint's token embeddings and run 'make export'"
            ) from error

    def __call__(self, items: Sequence[str | RequestError], budget: Budget) -> list[Result]:
        """Embeds each text, or says what is wrong with it; in their order, as long as there is time."""
        return _in_rounds(items, self._round, self._cost, budget)

    def _round(self, items: Sequence[str | RequestError], budget: Budget) -> list[Result]:
        seconds = self._cost.seconds(1)
        results: dict[int, Result] = {}
        valid: list[tuple[int, Tokens]] = []
        for index, tokens in enumerate(self._tokenise(items, seconds, budget)):
            if isinstance(tokens, RequestError):
                results[index] = tokens
            else:
                valid.append((index, tokens))
        late = False
        for group in length_groups([len(tokens.ids) for _, tokens in valid], self._settings.max_batch):
            embedded: Iterable[Result] = repeat(overloaded(), len(group))
            if not late:
                embed, check = self._embed, self._encoder.check_golden
                embedded = _one_or_many([valid[i][1] for i in group], embed, check, budget)
            results.update(zip((valid[i][0] for i in group), embedded, strict=True))
            # Looked at after the first pass, which is made even if tokenising has overrun.
            late = budget.left() <= 0
        budget.give_back(seconds * sum(len(tokens.ids) for _, tokens in valid))
        return [results[index] for index in range(len(items))]

    def largest(self, limit: str, items: int) -> LargestRequest:
        """What the forward passes of so many texts take that fill the context length."""
        what = f"texts of {self._longest} tokens"
        return LargestRequest(limit, items, what, self._cost.seconds(items * self._longest))

    def _tokenise(
        self, items: Sequence[str | RequestError], seconds: float, budget: Budget
    ) -> Iterator[Tokens | RequestError]:
        """Tokenises as long as there is time left to embed what is tokenised, at `seconds` a token."""
        in_time = True
        for item in items:
            if isinstance(item, RequestError):
                yield item
                continue
            if in_time:
                with self._meter.stage("tokenise"):
                    tokens = self._encoder.tokenizer.tokenize(item)
                in_time = budget.set_aside(seconds * len(tokens.ids))
            yield tokens if in_time else overloaded()

    def _embed(self, tokens: Sequence[Tokens]) -> list[Result]:
        self._meter.add("ClipForwardPasses", 1)
        self._meter.add("ClipTextsTruncated", sum(t.truncated for t in tokens))
        input_ids, attention_mask = self._encoder.tokenizer.pad([t.ids for t in tokens])
        with self._meter.stage("inference"), self._cost.measure(input_ids.size + PASS_TOKENS):
            embeddings = self._encoder.embed(input_ids, attention_mask)
        return _results(embeddings, [Usage(len(t.ids), int(t.truncated), t.unknown) for t in tokens])


class CachedTextEmbedder:
    """A `TextEmbedder` that remembers the texts it has seen, the least recently used forgotten first.

    Args:
        capacity: bytes that it may take: what it remembers of a text is its hash, since a text may be 80 kB
            long, and its embedding.
    """

    def __init__(self, embedder: TextEmbedder, capacity: int):
        self._embedder = embedder
        self._capacity = capacity
        self._cache: OrderedDict[bytes, Embedded] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def __call__(self, items: Sequence[str | RequestError], budget: Budget) -> list[Result]:
        """Embeds each text, or says what is wrong with it; in their order, as long as there is time."""
        keys = {item: _text_key(item) for item in items if isinstance(item, str)}
        fresh = [text for text, key in keys.items() if key not in self._cache]
        self.misses += len(fresh)
        self.hits += sum(isinstance(item, str) for item in items) - len(fresh)
        known: dict[str, Result] = dict(zip(fresh, self._embedder(fresh, budget), strict=True))
        for text, key in keys.items():
            if key in self._cache:
                self._cache.move_to_end(key)
                known[text] = self._cache[key]
        for text in fresh:
            result = known[text]
            if isinstance(result, Embedded):
                # A copy: a row of a batch would keep the whole batch's memory alive.
                self._cache[keys[text]] = Embedded(result.embedding.copy(), result.usage)
                self.bytes += _entry_bytes(result)
        while self.bytes > self._capacity:
            _, forgotten = self._cache.popitem(last=False)
            self.bytes -= _entry_bytes(forgotten)
        return [known[item] if isinstance(item, str) else item for item in items]

    def largest(self, limit: str, items: int) -> LargestRequest:
        """As a `TextEmbedder`, for texts that it has not seen."""
        return self._embedder.largest(limit, items)


def _text_key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _entry_bytes(embedded: Embedded) -> int:
    return embedded.embedding.nbytes + ENTRY_BYTES


class Embedder(Protocol[InputT]):
    """What an endpoint needs of an embedder."""

    def __call__(self, items: Sequence[InputT | RequestError], budget: Budget) -> list[Result]:
        """Embeds each item, or says what is wrong with it; in their order, as long as there is time."""

    def largest(self, limit: str, items: int) -> LargestRequest:
        """What the forward passes of so many items take at most; `limit` is the setting that admits them."""


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
        return _in_turns(rows, self._parse, lambda r: len(r.items), self._answer, self._settings, self.meter)

    def _answer(self, requests: Sequence[EmbeddingRequest[ItemT]], budget: Budget) -> list[Reply]:
        results = _embed_fairly(self._embed, [r.items for r in requests], budget, self.meter)
        with self.meter.stage("serialise"):
            return [
                embedding_reply(self._spec, of_one, request.encoding_format)
                for request, of_one in zip(requests, results, strict=True)
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
        return _in_turns(
            rows,
            parse_similarity_request,
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
            of_images = _embed_fairly(self._embed_images, images, half, self.meter)
            of_texts = _embed_fairly(self._embed_texts, texts, budget, self.meter)
        else:
            of_texts = _embed_fairly(self._embed_texts, texts, half, self.meter)
            of_images = _embed_fairly(self._embed_images, images, budget, self.meter)
        cache = self._embed_texts
        self.meter.add("ClipTextCacheHits", cache.hits)
        self.meter.add("ClipTextCacheMisses", cache.misses)
        cache.hits = cache.misses = 0
        with self.meter.stage("serialise"):
            return [
                similarity_reply(self.specs[0], *of_one) for of_one in zip(of_images, of_texts, strict=True)
            ]


def image_endpoint(encoder: TracedImageEncoder, settings: Settings) -> Endpoint:
    """The `clip_image` endpoint."""
    meter = Meter()
    embed = ImageEmbedder(encoder, settings, meter)
    return EmbeddingEndpoint[bytes](encoder.spec, parse_image_request, embed, settings, meter)


def text_endpoint(encoder: TracedTextEncoder, settings: Settings) -> Endpoint:
    """The `clip_text` endpoint."""
    meter = Meter()
    embed = TextEmbedder(encoder, settings, meter)
    return EmbeddingEndpoint[str](encoder.spec, parse_text_request, embed, settings, meter)


def _in_turns(
    rows: Sequence[Row],
    parse: Callable[[Row, RequestLimits], RequestT],
    size: Callable[[RequestT], int],
    answer: Callable[[Sequence[RequestT], Budget], list[Reply]],
    settings: Settings,
    meter: Meter,
) -> list[Reply]:
    """Answers a batch, as many requests at once as fill a forward pass, until its time is up.

    What costs little goes first, as far as it is known: small bodies are parsed first, requests of few items
    answered first. So no request waits for one that takes all the time, or is told to come back for its sake.
    """
    budget = Budget.of(settings.max_seconds)
    meter.add("ClipBatches", 1)
    meter.add("ClipRequests", len(rows))
    replies: dict[int, Reply] = {}
    requests: list[tuple[int, RequestT]] = []
    parsing = budget.within(settings.max_seconds / 2)
    for index in sorted(range(len(rows)), key=lambda index: rows[index].size):
        with meter.stage("parse"):
            request = _parsed(rows[index], parse, settings.requests, parsing)
        if isinstance(request, RequestError):
            meter.error(request.code)
            replies[index] = error_reply(request)
        else:
            requests.append((index, request))
    # Requests of as many items stay in the order in which they came.
    requests.sort(key=lambda indexed: (size(indexed[1]), indexed[0]))
    while requests:
        turn = [requests.pop(0)]
        items = size(turn[0][1])
        while requests and (items := items + size(requests[0][1])) <= settings.max_batch:
            turn.append(requests.pop(0))
        if budget.left() > 0:
            of_turn = answer([request for _, request in turn], budget.within(settings.max_request_seconds))
            replies.update(zip((index for index, _ in turn), of_turn, strict=True))
        else:
            # The server counts these; the callers' clients ask again.
            for index, _ in turn:
                meter.error(overloaded().code)
                replies[index] = error_reply(overloaded())
    return [replies[index] for index in range(len(rows))]


def _parsed(
    row: Row, parse: Callable[[Row, RequestLimits], RequestT], limits: RequestLimits, budget: Budget
) -> RequestT | RequestError:
    if budget.left() <= 0:
        return overloaded()
    try:
        return _attempt(lambda row: parse(row, limits), row)
    except Exception as error:
        # A fault of ours, and this row's alone. Its message, or a traceback's, might quote the payload.
        logger.error("parsing a request failed with %s", type(error).__name__)
        return RequestError("internal_error", "the server failed at this request", 500)


def _embed_fairly(
    embed: Embedder[ItemT],
    requests: Sequence[Sequence[ItemT | RequestError]],
    budget: Budget,
    meter: Meter,
) -> list[list[Result]]:
    """Embeds the items of several requests together: the first item of each before the second of any."""
    places = sorted(
        ((request, item) for request, items in enumerate(requests) for item in range(len(items))),
        key=lambda place: place[1],
    )
    results = embed([requests[request][item] for request, item in places], budget)
    meter.add("ClipItems", len(results))
    for result in results:
        if isinstance(result, RequestError):
            meter.error(result.code)
    found = dict(zip(places, results, strict=True))
    return [[found[request, item] for item in range(len(items))] for request, items in enumerate(requests)]


def _in_rounds(
    items: Sequence[ItemT | RequestError],
    embed: Callable[[Sequence[ItemT | RequestError], Budget], list[Result]],
    cost: PassCost,
    budget: Budget,
) -> list[Result]:
    """Embeds items, and those there seemed to be no time for once more where passes turned out cheaper.

    What a pass costs was measured while other workers started as well, and may be several times too much:
    then most of the time would be left over.
    """
    results: dict[int, Result] = {}
    left = list(range(len(items)))
    while left:
        believed = cost.seconds(1)
        results.update(zip(left, embed([items[i] for i in left], budget), strict=True))
        if not cost.seconds(1) < believed:
            break
        left = [i for i in left if _is_overloaded(results[i])]
    return [results[index] for index in range(len(items))]


def _is_overloaded(result: Result) -> bool:
    return isinstance(result, RequestError) and result.code == overloaded().code


def _one_or_many(
    values: Sequence[ValueT],
    embed: Callable[[Sequence[ValueT]], list[Result]],
    check_golden: Callable[[], None],
    budget: Budget,
) -> list[Result]:
    """Embeds values in one forward pass; if that raises, in halves, so that only what is to blame fails.

    Args:
        check_golden: raises where the encoder itself is broken.
    """
    if not values:
        return []
    try:
        return embed(values)
    except Exception as error:
        # PyTorch's messages name shapes and indices, never an input.
        logger.warning("a forward pass of %d items failed: %s", len(values), str(error).partition("\n")[0])
    # Out of the `except` block, which keeps alive what the pass has allocated.
    if len(values) == 1:
        check_golden()
        return [_not_embeddable()]
    if budget.left() <= 0:
        return [overloaded()] * len(values)
    middle = len(values) // 2
    return [
        result
        for half in (values[:middle], values[middle:])
        for result in _one_or_many(half, embed, check_golden, budget)
    ]


def _results(embeddings: FloatArray, usages: Sequence[Usage]) -> list[Result]:
    """Embeddings that are vectors: in half precision a sum may overflow; a NaN would be no JSON."""
    lengths = np.linalg.norm(embeddings, axis=1)  # a sum: not finite where one of its terms is not
    return [
        Embedded(embedding, usage) if 0 < length < np.inf else _not_embeddable()
        for embedding, usage, length in zip(embeddings, usages, lengths, strict=True)
    ]


def _not_embeddable() -> RequestError:
    return RequestError("not_embeddable", "the encoder has no embedding for this item; leave it out", 422)


def _attempt(convert: Callable[[ItemT], ValueT], item: ItemT | RequestError) -> ValueT | RequestError:
    if isinstance(item, RequestError):
        return item
    try:
        return convert(item)
    except RequestError as error:
        # Anew: this one's traceback, and its cause's, keep alive what was decoded when it was raised, and
        # with it 100 MB for each large picture of the batch that is cut short.
        return RequestError(error.code, error.message, error.status, error.index)
