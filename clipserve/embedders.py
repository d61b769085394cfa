"""From pictures and texts to their embeddings, in forward passes of many items."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat
from typing import Protocol, TypeVar

import numpy as np

from clipserve.batching import as_results, attempt, in_rounds, one_or_many
from clipserve.cost import Budget, PassCost, overloaded
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.errors import RequestError, SpecError
from clipserve.images import PixelArray, decode_image, preprocess
from clipserve.memory import Allowance
from clipserve.meter import Meter
from clipserve.settings import Settings
from clipserve.tokens import PASS_TOKENS, Tokens, equal_length_groups, length_groups
from clipserve.wire.messages import Embedded, Result, Usage

InputT = TypeVar("InputT", contravariant=True)

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


class Embedder(Protocol[InputT]):
    """What an endpoint needs of an embedder."""

    def __call__(self, items: Sequence[InputT | RequestError], budget: Budget) -> list[Result]:
        """Embeds each item, or says what is wrong with it; in their order, as long as there is time."""

    def largest(self, limit: str, items: int) -> LargestRequest:
        """What the forward passes of so many items take at most; `limit` is the setting that admits them."""


class ImageEmbedder:
    """Turns encoded pictures into embeddings."""

    def __init__(self, encoder: ExportedImageEncoder, settings: Settings, meter: Meter | None = None):
        self._encoder = encoder
        self._settings = settings
        self._meter = Meter() if meter is None else meter
        self._cost = PassCost()
        self._decoder = ThreadPoolExecutor(settings.threads, "decode")
        # All together what one picture may take: small ones are decoded beside each other, large ones alone.
        self._memory = Allowance(settings.images.max_memory)
        preprocessing = encoder.preprocessing
        black = np.zeros((3, preprocessing.crop_height, preprocessing.crop_width), np.uint8)
        with self._cost.measure(1):
            encoder.embed([black])

    def __call__(self, items: Sequence[bytes | RequestError], budget: Budget) -> list[Result]:
        """Embeds each picture, or says what is wrong with it; in their order, as long as there is time."""
        return in_rounds(items, self._round, self._cost, budget)

    def _round(self, items: Sequence[bytes | RequestError], budget: Budget) -> list[Result]:
        results: list[Result] = []
        seconds = self._cost.seconds(1)
        # The next pictures are decoded while those before them are in the forward pass, where a core is free.
        pixels = self._decoder.map(partial(self._decode, budget, seconds), items)
        while batch := list(islice(pixels, self._settings.max_batch)):
            valid = [value for value in batch if not isinstance(value, RequestError)]
            # Even if decoding has overrun: what is decoded should not have been decoded for nothing.
            embedded = iter(one_or_many(valid, self._embed, self._encoder.check_golden, budget))
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
        pixels = attempt(partial(self._pixels, budget), item)
        if isinstance(pixels, RequestError):
            budget.give_back(seconds)
        return pixels

    def _pixels(self, budget: Budget, data: bytes) -> PixelArray:
        limits, preprocessing = self._settings.images, self._encoder.preprocessing

        def claim(needed: int) -> None:
            # Begun in time, but others had the memory until now.
            if held.enter_context(self._memory.hold(needed)) and budget.left() <= 0:
                raise overloaded()

        with ExitStack() as held, self._meter.stage("decode"):
            image = decode_image(
                data,
                limits,
                shortest_edge=preprocessing.shortest_edge,
                draft_factor=self._settings.draft_factor,
                color=self._settings.color,
                claim=claim,
            )
            return preprocess(image, preprocessing, limits)

    def _embed(self, pixels: Sequence[PixelArray]) -> list[Result]:
        self._meter.add("ClipForwardPasses", 1)
        with self._meter.stage("inference"), self._cost.measure(len(pixels)):
            embeddings = self._encoder.embed(pixels)
        return as_results(embeddings, [Usage()] * len(pixels))


class TextEmbedder:
    """Turns texts into embeddings.

    Raises:
        SpecError: the tokenizer has ids that the encoder has no embedding for.
    """

    def __init__(self, encoder: ExportedTextEncoder, settings: Settings, meter: Meter | None = None):
        self._encoder = encoder
        self._settings = settings
        self._meter = Meter() if meter is None else meter
        self._cost = PassCost()
        self._longest = encoder.tokenizer.context_length
        self._groups = equal_length_groups if encoder.spec.precision == "int8" else length_groups
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
        return in_rounds(items, self._round, self._cost, budget)

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
        lengths = [self._padded(tokens) for _, tokens in valid]
        for group in self._groups(lengths, self._settings.max_batch):
            embedded: Iterable[Result] = repeat(overloaded(), len(group))
            if not late:
                embed, check = self._embed, self._encoder.check_golden
                embedded = one_or_many([valid[i][1] for i in group], embed, check, budget)
            results.update(zip((valid[i][0] for i in group), embedded, strict=True))
            # Looked at after the first pass, which is made even if tokenising has overrun.
            late = budget.left() <= 0
        budget.give_back(seconds * sum(lengths))
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
                in_time = budget.set_aside(seconds * self._padded(tokens))
            yield tokens if in_time else overloaded()

    def _padded(self, tokens: Tokens) -> int:
        return self._encoder.tokenizer.padded(len(tokens.ids))

    def _embed(self, tokens: Sequence[Tokens]) -> list[Result]:
        self._meter.add("ClipForwardPasses", 1)
        self._meter.add("ClipTextsTruncated", sum(t.truncated for t in tokens))
        input_ids, attention_mask = self._encoder.tokenizer.pad([t.ids for t in tokens])
        with self._meter.stage("inference"), self._cost.measure(input_ids.size + PASS_TOKENS):
            embeddings = self._encoder.embed(input_ids, attention_mask)
        return as_results(embeddings, [Usage(len(t.ids), int(t.truncated), t.unknown) for t in tokens])


class CachedTextEmbedder:
    """A `TextEmbedder` that remembers the texts it has seen, the least recently used forgotten first.

    Args:
        capacity: bytes that it may take: what it remembers of a text is its hash, since a text may be 80 kB
            long, and its embedding.
    """

    def __init__(self, embedder: TextEmbedder, capacity: int, meter: Meter | None = None):
        self._embedder = embedder
        self._capacity = capacity
        self._meter = Meter() if meter is None else meter
        self._cache: OrderedDict[bytes, Embedded] = OrderedDict()
        self.bytes = 0

    def __call__(self, items: Sequence[str | RequestError], budget: Budget) -> list[Result]:
        """Embeds each text, or says what is wrong with it; in their order, as long as there is time."""
        keys = {item: _text_key(item) for item in items if isinstance(item, str)}
        fresh = [text for text, key in keys.items() if key not in self._cache]
        self._meter.add("ClipTextCacheHits", sum(isinstance(item, str) for item in items) - len(fresh))
        self._meter.add("ClipTextCacheMisses", len(fresh))
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
