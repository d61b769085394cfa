from __future__ import annotations

import gc
import io
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipserve import embedders
from clipserve.cost import Budget
from clipserve.embedders import ENTRY_BYTES, CachedTextEmbedder, ImageEmbedder, TextEmbedder
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import FloatArray
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import RequestError
from clipserve.images import ImageLimits, decode_image
from clipserve.memory import Allowance
from clipserve.meter import Meter
from clipserve.pipeline import Pipeline
from clipserve.settings import Settings
from clipserve.wire.messages import Embedded
from clipserve.wire.rows import Row
from tests.clipserve.answers import (
    AMPLE,
    LONG,
    PHOTOGRAPHS,
    PICTURES,
    TEXTS,
    assert_close,
    body_of,
    in_base64,
    json_row,
    vectors,
)


def test_no_forward_pass_takes_more_than_the_setting_says(
    text_encoder: ExportedTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    embed = text_encoder.embed

    def spy(input_ids: Any, attention_mask: Any) -> FloatArray:
        shapes.append(input_ids.shape)
        return embed(input_ids, attention_mask)

    endpoint = Pipeline(ENDPOINTS["clip_text"], [text_encoder], Settings(max_batch=4))
    monkeypatch.setattr(text_encoder, "embed", spy)
    endpoint.handle([json_row({"input": ["a", LONG] * 5})])
    assert sum(count for count, _ in shapes) == 10
    assert max(count for count, _ in shapes) <= 4
    # Short texts keep company with short ones, of three tokens in a pass of four.
    assert [length for _, length in shapes] == [4, 4, 128, 128]


def test_pictures_are_decoded_during_the_forward_pass(
    image_encoder: ExportedImageEncoder, picture_vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_is_decoded = threading.Event()
    decoded = []
    embed = image_encoder.embed

    def decode(data: bytes, *arguments: Any, **options: Any) -> Image.Image:
        decoded.append(data)
        if len(decoded) == 2:
            second_is_decoded.set()
        return decode_image(data, *arguments, **options)

    def wait(pixels: Any) -> FloatArray:
        assert second_is_decoded.wait(60)
        return embed(pixels)

    endpoint = Pipeline(ENDPOINTS["clip_image"], [image_encoder], Settings(max_batch=1))
    monkeypatch.setattr(embedders, "decode_image", decode)
    monkeypatch.setattr(image_encoder, "embed", wait)
    items = [{"image": in_base64(PICTURES[i])} for i in (0, 1)]
    reply = endpoint.handle([json_row({"input": items})])[0]
    assert_close(vectors(reply), picture_vectors[:2])


def test_as_many_pictures_are_decoded_at_once_as_there_are_threads(
    image_encoder: ExportedImageEncoder, picture_vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2, timeout=60)

    def decode(data: bytes, *arguments: Any, **options: Any) -> Image.Image:
        together.wait()
        return decode_image(data, *arguments, **options)

    endpoint = Pipeline(ENDPOINTS["clip_image"], [image_encoder], Settings(threads=2))
    monkeypatch.setattr(embedders, "decode_image", decode)
    broken = in_base64(PICTURES[0][:100])
    items = [broken, in_base64(PICTURES[0]), broken, in_base64(PICTURES[1])]
    reply = endpoint.handle([json_row({"input": [{"image": item} for item in items]})])[0]
    data = body_of(reply)["data"]
    assert [entry["object"] for entry in data] == ["error", "embedding"] * 2
    assert_close([entry["embedding"] for entry in data[1::2]], picture_vectors[:2])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_pictures_that_fill_the_memory_are_decoded_one_by_one(
    format: str, image_encoder: ExportedImageEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the limit allows to one, two threads take together: the bytes that each claims, while it does."""
    buffer = io.BytesIO()
    Image.effect_noise((400, 300), 60).convert("RGB").save(buffer, format)
    limits = ImageLimits(max_memory=1_500_000 if format != "WEBP" else 3_000_000)
    embed = ImageEmbedder(image_encoder, Settings(threads=2, images=limits, draft_factor=0))
    lock, held, most = threading.Lock(), [0], [0]
    hold = embed._memory.hold

    @contextmanager
    def spy(needed: int) -> Iterator[bool]:
        with hold(needed) as waited:
            with lock:
                held[0] += needed
                most[0] = max(most[0], held[0])
            yield waited
            with lock:
                held[0] -= needed

    monkeypatch.setattr(embed._memory, "hold", spy)
    results = embed([buffer.getvalue()] * 6, AMPLE)
    assert all(isinstance(result, Embedded) for result in results)
    # At the least what Pillow makes of it twice over: in its mode, and in RGB.
    assert 8 * 400 * 300 <= most[0] <= limits.max_memory
    assert held == [0]


def test_who_waits_for_memory_past_the_deadline_is_told_so(image_encoder: ExportedImageEncoder) -> None:
    embed = ImageEmbedder(image_encoder, Settings(threads=2))
    budget = Budget(math.inf)
    with ThreadPoolExecutor(1) as pool:
        with embed._memory.hold(ImageLimits().max_memory):
            waiting = pool.submit(embed._decode, budget, 0.0, PICTURES[0])
            wait_for(lambda: len(embed._memory._waiting) == 1)
            budget._deadline = 0
        result = waiting.result(60)
    assert isinstance(result, RequestError)
    assert result.code == "overloaded"


def test_memory_goes_to_who_came_first() -> None:
    """A large picture is not overtaken for good by small ones that would fit."""
    memory, order = Allowance(10), list[str]()

    def take(name: str, needed: int) -> None:
        with memory.hold(needed):
            order.append(name)

    with ThreadPoolExecutor(2) as pool:
        with memory.hold(6):
            # More than all there is: alone.
            large = pool.submit(take, "large", 99)
            wait_for(lambda: len(memory._waiting) == 1)
            small = pool.submit(take, "small", 1)
            wait_for(lambda: len(memory._waiting) == 2)
        large.result(60)
        small.result(60)
    assert order == ["large", "small"]
    assert memory._left == 10


def wait_for(holds: Callable[[], bool]) -> None:
    """Until another thread has come to where it waits."""
    for _ in range(60_000):
        if holds():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it does not wait")


def test_warnings_are_as_they_were_after_decoding_in_several_threads() -> None:
    """One thread begins to decode before another one has ended, and ends after it."""
    before = list(warnings.filters)
    first_has_begun, second_has_ended = threading.Event(), threading.Event()

    def outlast(needed: int) -> None:
        first_has_begun.set()
        assert second_has_ended.wait(60)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(decode_image, PICTURES[0], ImageLimits(), claim=outlast)
        assert first_has_begun.wait(60)
        decode_image(PICTURES[1], ImageLimits())
        second_has_ended.set()
        first.result(60)
    assert list(warnings.filters) == before


def test_large_jpegs_are_decoded_at_a_reduced_size_where_that_is_set(
    image_encoder: ExportedImageEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def spy(*arguments: Any, **options: Any) -> Image.Image:
        sizes.append(decode_image(*arguments, **options).size)
        return decode_image(*arguments, **options)

    monkeypatch.setattr(embedders, "decode_image", spy)
    photograph = Row((PHOTOGRAPHS / "retina.jpg").read_bytes(), "")
    endpoints = (
        Pipeline(ENDPOINTS["clip_image"], [image_encoder], Settings(draft_factor=factor)) for factor in (2, 0)
    )
    reduced, whole = (vectors(endpoint.handle([photograph])[0])[0] for endpoint in endpoints)
    assert sizes == [(177, 177), (1411, 1411)]
    assert 0.999 < reduced @ whole < 1 - 1e-9


class Counting:
    """Stands for a `TextEmbedder`; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, items: Sequence[str], budget: Budget) -> list[Embedded | RequestError]:
        self.asked.append(list(items))
        block = np.array([[len(t), hash(t) % 1000] for t in items], dtype=np.float32).reshape(-1, 2)
        return [
            RequestError("refused", t) if t == "bad" else Embedded(v)
            for t, v in zip(items, block, strict=True)
        ]


@pytest.fixture
def inner() -> Counting:
    return Counting()


def cached(inner: Counting, capacity: int, meter: Meter | None = None) -> CachedTextEmbedder:
    of_one = np.zeros(2, np.float32).nbytes + ENTRY_BYTES
    return CachedTextEmbedder(inner, capacity * of_one, meter)  # type: ignore[arg-type]


def lengths(results: Sequence[Embedded | RequestError]) -> list[Any]:
    return [int(r.embedding[0]) if isinstance(r, Embedded) else r.code for r in results]


def test_cache_asks_for_each_text_once(inner: Counting) -> None:
    meter = Meter()
    cache = cached(inner, 10, meter)
    assert lengths(cache(["a", "bb", "a", "a"], AMPLE)) == [1, 2, 1, 1]
    assert lengths(cache(["ccc", "bb", "a"], AMPLE)) == [3, 2, 1]
    assert inner.asked == [["a", "bb"], ["ccc"]]
    assert meter.take()[0] == {"ClipTextCacheHits": 4, "ClipTextCacheMisses": 3}


def test_cache_forgets_the_least_recently_used(inner: Counting) -> None:
    cache = cached(inner, 2)
    cache(["a"], AMPLE)
    cache(["bb"], AMPLE)
    cache(["a"], AMPLE)
    cache(["ccc"], AMPLE)  # bb goes
    inner.asked.clear()
    cache(["a", "ccc"], AMPLE)
    assert inner.asked == [[]]
    cache(["bb"], AMPLE)
    assert inner.asked[-1] == ["bb"]


def test_cache_never_holds_more_than_its_capacity(inner: Counting) -> None:
    cache = cached(inner, 3)
    texts = [str(i) * (i + 1) for i in range(9)]
    for _ in range(2):
        # More texts in one request than fit: all are answered.
        assert lengths(cache(texts, AMPLE)) == list(range(1, 10))
    assert len(cache._cache) == 3
    # What was cached at the start of a request may go during it, and is answered all the same.
    assert lengths(cache([*texts[-3:], *texts[:6]], AMPLE)) == [7, 8, 9, 1, 2, 3, 4, 5, 6]
    assert len(cache._cache) == 3


def test_cache_passes_errors_through_and_keeps_none(inner: Counting) -> None:
    cache = cached(inner, 10)
    given = RequestError("text_too_long", "x", 413)
    results = cache(["a", given, "bad", "a"], AMPLE)
    assert lengths(results) == [1, "text_too_long", "refused", 1]
    assert results[1] is given
    assert lengths(cache(["bad"], AMPLE)) == ["refused"]
    assert inner.asked == [["a", "bad"], ["bad"]]
    assert lengths(cache([given], AMPLE)) == ["text_too_long"]


def test_cache_keeps_no_batch_alive(inner: Counting) -> None:
    """A row of a batch is a view of the whole batch's memory."""
    cache = cached(inner, 10)
    cache(["a", "bb"], AMPLE)
    assert all(kept.embedding.base is None for kept in cache._cache.values())


def test_cached_texts_are_those_of_the_encoder(
    text_encoder: ExportedTextEncoder, text_vectors: FloatArray
) -> None:
    cache = CachedTextEmbedder(TextEmbedder(text_encoder, Settings()), 5 * (128 + ENTRY_BYTES))
    for _ in range(2):
        found = cache(TEXTS, AMPLE)
        assert_close([r.embedding for r in found if isinstance(r, Embedded)], text_vectors)
        assert [r.usage.truncated for r in found if isinstance(r, Embedded)].count(1) == 2


def test_image_embedder_keeps_limits(image_encoder: ExportedImageEncoder) -> None:
    embed = ImageEmbedder(image_encoder, Settings(images=ImageLimits(max_memory=9 * 90 * 67)))
    buffer = io.BytesIO()
    # No JPEG, which would be decoded at half its size.
    Image.new("RGB", (160, 120)).save(buffer, "PNG")
    results = embed([PICTURES[0], buffer.getvalue(), PICTURES[2]], AMPLE)
    assert [getattr(r, "code", "ok") for r in results] == ["ok", "image_too_large", "ok"]


def test_image_embedder_keeps_no_picture_that_it_could_not_decode(
    image_encoder: ExportedImageEncoder,
) -> None:
    """The pictures of a batch that are cut short would add up, 4 bytes a pixel."""
    buffer = io.BytesIO()
    Image.new("RGB", (333, 222)).save(buffer, "PNG")
    embed = ImageEmbedder(image_encoder, Settings())
    # Collected by their last reference, not by the garbage collector, which may come too late.
    gc.disable()
    try:
        results = embed([buffer.getvalue()[:-40]] * 4, AMPLE)
        # Not isinstance, which asks every object for its class: some modules warn when asked.
        pictures = [o for o in gc.get_objects() if issubclass(type(o), Image.Image)]
    finally:
        gc.enable()
    assert [getattr(r, "code", "ok") for r in results] == ["invalid_image"] * 4
    assert [picture for picture in pictures if picture.size == (333, 222)] == []
