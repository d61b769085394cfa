from __future__ import annotations

import base64
import gc
import importlib
import io
import json
import math
import random
import re
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import yaml
from PIL import Image

from clipserve import embedders
from clipserve.archive_files import SUMS_FILE, file_sha256
from clipserve.cost import Budget
from clipserve.embedders import ENTRY_BYTES, CachedTextEmbedder, ImageEmbedder, TextEmbedder
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import FloatArray, read_spec
from clipserve.errors import RequestError, SpecError
from clipserve.images import ImageLimits, decode_image
from clipserve.pipeline import Endpoint, SimilarityEndpoint, image_endpoint, text_endpoint
from clipserve.settings import Settings
from clipserve.torchserve_adapter import Reporter, TorchServeHandler
from clipserve.wire.messages import Embedded
from clipserve.wire.rows import JSON, Part, Reply, RequestLimits, Row
from handlers.clip_image import ClipImageHandler
from handlers.clip_similarity import ClipSimilarityHandler
from handlers.clip_text import ClipTextHandler

PHOTOGRAPHS = Path(skimage.data.__file__).parent
MULTIPART = "multipart/form-data"
AMPLE = Budget(math.inf)

# Sums over another batch or length are added in another order; nothing else may differ.
TOLERANCE = 1e-5

LONG = "two dogs in the snow and a cat on the table " * 60
TEXTS = [
    "Two dogs in the snow", "", LONG, "雪の中の二匹の犬", "a", "كلبان في الثلج", LONG[:300], "🐶",
    "A picture of London at night", "a cat", "Két kutya a hóban", LONG[5:], "b", "c d e f g", "   ",
]  # fmt: skip


def jpeg(name: str, width: int) -> bytes:
    with Image.open(PHOTOGRAPHS / name) as image:
        buffer = io.BytesIO()
        image.convert("RGB").resize((width, width * 3 // 4)).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURES = [
    jpeg("astronaut.png", 90),
    jpeg("coffee.png", 160),
    jpeg("chelsea.png", 64),
    jpeg("camera.png", 50),
]


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def json_row(value: Any) -> Row:
    return Row(json.dumps(value).encode(), JSON)


def body_of(reply: Reply) -> Any:
    return json.loads(reply.body)


def vectors(reply: Reply) -> FloatArray:
    assert reply.status == 200, reply.body
    return np.array([entry["embedding"] for entry in body_of(reply)["data"]], dtype=np.float32)


def error_code(reply: Reply) -> tuple[int, str]:
    return reply.status, body_of(reply)["error"]["code"]


def assert_close(found: Any, expected: Any) -> None:
    assert np.shape(found) == np.shape(expected)
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() <= TOLERANCE


@pytest.fixture(scope="module")
def images(image_encoder: ExportedImageEncoder) -> Endpoint:
    return image_endpoint(image_encoder, Settings())


@pytest.fixture(scope="module")
def texts(text_encoder: ExportedTextEncoder) -> Endpoint:
    return text_endpoint(text_encoder, Settings())


@pytest.fixture
def similarity(image_encoder: ExportedImageEncoder, text_encoder: ExportedTextEncoder) -> SimilarityEndpoint:
    return SimilarityEndpoint(image_encoder, text_encoder, Settings())


@pytest.fixture(scope="module")
def text_vectors(texts: Endpoint) -> FloatArray:
    """Each text embedded alone."""
    return np.concatenate([vectors(texts.handle([json_row({"input": t})])[0]) for t in TEXTS])


@pytest.fixture(scope="module")
def picture_vectors(images: Endpoint) -> FloatArray:
    """Each picture embedded alone."""
    return np.concatenate([vectors(images.handle([Row(p, "image/jpeg")])[0]) for p in PICTURES])


# ---- embeddings


def test_embeddings_are_those_of_the_encoder(
    text_vectors: FloatArray, picture_vectors: FloatArray, text_encoder: ExportedTextEncoder
) -> None:
    for found in (text_vectors, picture_vectors):
        assert found.shape[1] == 32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        # They tell inputs apart, or comparing them would prove nothing.
        cosines = (found @ found.T)[np.triu_indices(len(found), 1)]
        assert np.median(cosines) < 0.99
    tokens = text_encoder.tokenizer.tokenize(TEXTS[0])
    expected = text_encoder.embed(*text_encoder.tokenizer.pad([tokens.ids]))[0]
    assert_close(text_vectors[0], expected)


def test_every_way_to_send_a_text(texts: Endpoint) -> None:
    rows = [
        Row(b"two dogs", "text/plain"),
        Row(b"two dogs", ""),
        json_row({"input": "two dogs"}),
        json_row({"input": ["two dogs"]}),
        json_row({"input": ["two dogs"], "encoding_format": "base64"}),
    ]
    replies = texts.handle(rows)
    assert [reply.status for reply in replies] == [200] * 5
    first = vectors(replies[0])
    for reply in replies[1:4]:
        assert_close(vectors(reply), first)
    text = body_of(replies[4])["data"][0]["embedding"]
    assert_close(np.frombuffer(base64.b64decode(text), "<f4"), first[0])


def test_every_way_to_send_a_picture(images: Endpoint, picture_vectors: FloatArray) -> None:
    data = PICTURES[0]
    replies = images.handle(
        [
            Row(data, "image/jpeg"),
            Row(data, ""),
            Row(b"", MULTIPART, [Part("file", data, "image/jpeg")]),
            json_row({"input": in_base64(data)}),
            json_row({"input": [{"image": f"data:image/jpeg;base64,{in_base64(data)}"}]}),
        ]
    )
    for reply in replies:
        assert_close(vectors(reply), picture_vectors[:1])


def test_text_usage(texts: Endpoint, text_encoder: ExportedTextEncoder) -> None:
    reply = texts.handle([json_row({"input": ["Two dogs", LONG, "☃ ☃"]})])[0]
    counted = [text_encoder.tokenizer.tokenize(t) for t in ("Two dogs", LONG, "☃ ☃")]
    assert body_of(reply)["usage"] == {
        "prompt_tokens": sum(len(t.ids) for t in counted),
        "truncated": 1,
        "unknown_tokens": 2,
    }
    assert len(counted[1].ids) == 128


def test_responses_say_which_space_they_are_of(texts: Endpoint, images: Endpoint) -> None:
    text = body_of(texts.handle([json_row({"input": "a"})])[0])
    image = body_of(images.handle([Row(PICTURES[0], "")])[0])
    for body, endpoint in ((text, texts), (image, images)):
        spec = endpoint.specs[0]
        assert (body["model"], body["space_id"], body["embedding_dim"]) == ("clip", spec.space_id, 32)
    assert text["space_id"] == image["space_id"]


# ---- batches: good and bad rows, order, neighbours


def test_bad_text_rows_fail_alone(texts: Endpoint, text_vectors: FloatArray) -> None:
    rows = [
        json_row({"input": TEXTS[0]}),
        Row(b"{", JSON),
        json_row({"input": [TEXTS[3], TEXTS[2], TEXTS[4]]}),
        Row(b"\xff", "text/plain"),
        json_row({"input": 5}),
        Row(b"a=b", "application/x-www-form-urlencoded"),
        json_row({"input": TEXTS[2]}),
        json_row({"input": ["x" * 20_001, "y" * 20_001]}),
        json_row({"input": TEXTS[4]}),
    ]
    replies = texts.handle(rows)
    assert [reply.status for reply in replies] == [200, 400, 200, 400, 400, 415, 200, 413, 200]
    assert_close(vectors(replies[0]), text_vectors[[0]])
    assert_close(vectors(replies[2]), text_vectors[[3, 2, 4]])
    assert_close(vectors(replies[6]), text_vectors[[2]])
    assert_close(vectors(replies[8]), text_vectors[[4]])
    assert [error_code(replies[i])[1] for i in (1, 3, 4, 5, 7)] == [
        "invalid_json", "invalid_encoding", "invalid_request", "unsupported_media_type", "text_too_long",
    ]  # fmt: skip


def test_bad_image_rows_fail_alone(images: Endpoint, picture_vectors: FloatArray) -> None:
    rows = [
        Row(PICTURES[0], "image/jpeg"),
        Row(PICTURES[1][:700], "image/jpeg"),
        Row(b"not a picture", ""),
        Row(PICTURES[1], ""),
        Row(
            b"",
            MULTIPART,
            [Part(n, p, "image/jpeg") for n, p in zip("aba", (PICTURES[2], b"", PICTURES[3]), strict=True)],
        ),
        json_row({"input": "https://example.org/a.png"}),
        json_row({"input": [in_base64(PICTURES[3]), "???", in_base64(PICTURES[0])]}),
        Row(b"", ""),
    ]
    replies = images.handle(rows)
    assert [reply.status for reply in replies] == [200, 400, 415, 200, 200, 400, 200, 400]
    assert [error_code(replies[i])[1] for i in (1, 2, 5, 7)] == [
        "invalid_image", "unsupported_image_format", "url_not_fetched", "empty_request",
    ]  # fmt: skip
    assert_close(vectors(replies[0]), picture_vectors[[0]])
    assert_close(vectors(replies[3]), picture_vectors[[1]])
    for reply, expected, code in (
        (replies[4], (2, 3), "empty_image"),
        (replies[6], (3, 0), "invalid_base64"),
    ):
        data = body_of(reply)["data"]
        assert [entry["object"] for entry in data] == ["embedding", "error", "embedding"]
        assert [entry["index"] for entry in data] == [0, 1, 2]
        assert data[1]["error"]["code"] == code
        assert_close([data[0]["embedding"], data[2]["embedding"]], picture_vectors[list(expected)])


def test_all_rows_bad(texts: Endpoint, images: Endpoint, similarity: SimilarityEndpoint) -> None:
    for endpoint in (texts, images, similarity):
        replies = endpoint.handle([Row(b"{", JSON), Row(b"[]", JSON), Row(b"", JSON)])
        assert [error_code(r) for r in replies] == [
            (400, "invalid_json"), (400, "invalid_request"), (400, "empty_request"),
        ]  # fmt: skip


def test_request_without_any_good_item_gets_its_first_error(images: Endpoint) -> None:
    reply = images.handle([json_row({"input": ["?", in_base64(b"no picture")]})])[0]
    assert (reply.status, body_of(reply)["error"]["index"]) == (400, 0)
    assert error_code(images.handle([json_row({"input": [in_base64(b"no picture"), "?"]})])[0])[0] == 415


@pytest.mark.parametrize("max_batch", [1, 2, 4, 7, 32])
@pytest.mark.parametrize("seed", range(3))
def test_sorting_by_length_and_batching_keep_the_order(
    text_encoder: ExportedTextEncoder, text_vectors: FloatArray, max_batch: int, seed: int
) -> None:
    """Rows of many items of all lengths, with bad ones among them, in forward passes of every size."""
    rng = random.Random(seed)
    endpoint = text_endpoint(text_encoder, Settings(max_batch=max_batch))
    rows = [[rng.choice([*range(len(TEXTS)), None]) for _ in range(rng.randint(1, 9))] for _ in range(6)]
    replies = endpoint.handle([json_row({"input": [0 if i is None else TEXTS[i] for i in r]}) for r in rows])
    assert len(replies) == len(rows)
    for row, reply in zip(rows, replies, strict=True):
        if all(i is None for i in row):
            assert error_code(reply) == (400, "invalid_item")
            continue
        data = body_of(reply)["data"]
        assert [entry["index"] for entry in data] == list(range(len(row)))
        for i, entry in zip(row, data, strict=True):
            if i is None:
                assert entry["error"]["code"] == "invalid_item"
            else:
                assert_close(entry["embedding"], text_vectors[i])


@pytest.mark.parametrize("text", range(len(TEXTS)))
@pytest.mark.parametrize("neighbours", [["x"], [LONG], [LONG, "", "雪"] * 5], ids=["short", "long", "many"])
def test_a_text_is_embedded_as_if_alone(
    texts: Endpoint, text_vectors: FloatArray, text: int, neighbours: list[str]
) -> None:
    around = texts.handle([json_row({"input": [*neighbours, TEXTS[text], *neighbours]})])[0]
    assert_close(vectors(around)[len(neighbours)], text_vectors[text])
    rows = [json_row({"input": t}) for t in [*neighbours, TEXTS[text]]]
    assert_close(vectors(texts.handle(rows)[-1])[0], text_vectors[text])


@pytest.mark.parametrize("max_batch", [1, 3, 32])
def test_a_picture_is_embedded_as_if_alone(
    image_encoder: ExportedImageEncoder, picture_vectors: FloatArray, max_batch: int
) -> None:
    endpoint = image_endpoint(image_encoder, Settings(max_batch=max_batch))
    order = [2, 0, 3, 3, 1, 0, 2]
    assert_close(
        np.concatenate([vectors(r) for r in endpoint.handle([Row(PICTURES[i], "") for i in order])]),
        picture_vectors[order],
    )


def test_no_forward_pass_takes_more_than_the_setting_says(
    text_encoder: ExportedTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    embed = text_encoder.embed

    def spy(input_ids: Any, attention_mask: Any) -> FloatArray:
        shapes.append(input_ids.shape)
        return embed(input_ids, attention_mask)

    endpoint = text_endpoint(text_encoder, Settings(max_batch=4))
    monkeypatch.setattr(text_encoder, "embed", spy)
    endpoint.handle([json_row({"input": ["a", LONG] * 5})])
    assert sum(count for count, _ in shapes) == 10
    assert max(count for count, _ in shapes) <= 4
    # Short texts keep company with short ones.
    assert [length for _, length in shapes] == [3, 3, 128, 128]


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

    endpoint = image_endpoint(image_encoder, Settings(max_batch=1))
    monkeypatch.setattr(embedders, "decode_image", decode)
    monkeypatch.setattr(image_encoder, "embed", wait)
    items = [{"image": in_base64(PICTURES[i])} for i in (0, 1)]
    reply = endpoint.handle([json_row({"input": items})])[0]
    assert_close(vectors(reply), picture_vectors[:2])


def test_large_jpegs_are_decoded_at_a_reduced_size_where_that_is_set(
    image_encoder: ExportedImageEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def spy(*arguments: Any, **options: Any) -> Image.Image:
        sizes.append(decode_image(*arguments, **options).size)
        return decode_image(*arguments, **options)

    monkeypatch.setattr(embedders, "decode_image", spy)
    photograph = Row((PHOTOGRAPHS / "retina.jpg").read_bytes(), "")
    reduced, whole = (
        vectors(image_endpoint(image_encoder, Settings(draft_factor=factor)).handle([photograph])[0])[0]
        for factor in (2, 0)
    )
    assert sizes == [(177, 177), (1411, 1411)]
    assert 0.999 < reduced @ whole < 1 - 1e-9


def test_nothing_is_run_for_no_items(texts: Endpoint, images: Endpoint) -> None:
    assert texts.handle([]) == []
    assert images.handle([]) == []


# ---- similarity


def test_similarity_is_that_of_the_embeddings(
    similarity: SimilarityEndpoint, text_vectors: FloatArray, picture_vectors: FloatArray
) -> None:
    reply = similarity.handle([json_row({"images": [in_base64(p) for p in PICTURES], "texts": TEXTS})])[0]
    body = body_of(reply)
    expected = picture_vectors.astype(np.float64) @ text_vectors.T.astype(np.float64)
    assert_close(body["cosine_similarity"], expected)
    probabilities = np.array(body["probabilities"])
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
    logits = similarity.specs[0].logit_scale * np.array(body["cosine_similarity"])
    np.testing.assert_allclose(
        probabilities, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-9
    )
    assert body["logit_scale"] == pytest.approx(np.exp(4.6052), rel=1e-6)
    assert body["errors"] == []


def test_similarity_batch_of_good_and_bad_rows(similarity: SimilarityEndpoint) -> None:
    a, b = (in_base64(p) for p in PICTURES[:2])
    good = [
        json_row({"images": [a, b], "texts": ["a cat", LONG]}),
        json_row({"images": b, "labels": ["dog", "cat", "dog"], "template": "a photo of a {}"}),
        Row(b"", MULTIPART, [Part("f", PICTURES[0], "image/jpeg"), Part("texts", b'["a cat"]')]),
    ]
    alone = [body_of(similarity.handle([row])[0]) for row in good]
    bad_items = json_row({"images": ["?", b, in_base64(b"no")], "texts": ["a cat", 5, LONG, "\ud800"]})
    replies = similarity.handle([good[0], Row(b"{", JSON), good[1], bad_items, Row(PICTURES[0], ""), good[2]])
    assert [reply.status for reply in replies] == [200, 400, 200, 200, 415, 200]
    for reply, expected in zip((replies[0], replies[2], replies[5]), alone, strict=True):
        assert_close(body_of(reply)["cosine_similarity"], expected["cosine_similarity"])
        np.testing.assert_allclose(body_of(reply)["probabilities"], expected["probabilities"], atol=1e-3)
    body = body_of(replies[3])
    assert [row is None for row in body["cosine_similarity"]] == [True, False, True]
    row = body["cosine_similarity"][1]
    assert [value is None for value in row] == [False, True, False, True]
    assert_close([row[0], row[2]], alone[0]["cosine_similarity"][1])
    assert sum(p for p in body["probabilities"][1] if p is not None) == pytest.approx(1)
    assert [(e["input"], e["error"]["index"], e["error"]["code"]) for e in body["errors"]] == [
        ("images", 0, "invalid_base64"), ("images", 2, "unsupported_image_format"),
        ("texts", 1, "invalid_item"), ("texts", 3, "invalid_encoding"),
    ]  # fmt: skip


def test_equal_labels_have_equal_probabilities(similarity: SimilarityEndpoint) -> None:
    row = json_row({"images": in_base64(PICTURES[0]), "labels": ["dog", "cat", "dog"]})
    probabilities = body_of(similarity.handle([row])[0])["probabilities"][0]
    assert probabilities[0] == pytest.approx(probabilities[2], rel=1e-9)


@pytest.mark.parametrize(
    "body",
    [{"images": ["?"], "texts": ["a"]}, {"images": [in_base64(PICTURES[0])], "texts": [5]}],
    ids=["image", "text"],
)
def test_similarity_without_any_good_pair(similarity: SimilarityEndpoint, body: dict[str, Any]) -> None:
    reply = similarity.handle([json_row(body)])[0]
    assert reply.status == 400
    assert body_of(reply)["error"]["index"] == 0


def test_similarity_counts_its_cache(similarity: SimilarityEndpoint) -> None:
    def ask(*labels: str) -> dict[str, int]:
        similarity.handle([json_row({"images": in_base64(PICTURES[0]), "labels": labels})])
        counts, _, _ = similarity.meter.take()
        return {name: count for name, count in counts.items() if name.startswith("ClipTextCache")}

    assert ask("dog", "cat") == {"ClipTextCacheHits": 0, "ClipTextCacheMisses": 2}
    assert ask("cat", "dog", "cow", "dog") == {"ClipTextCacheHits": 3, "ClipTextCacheMisses": 1}
    assert similarity.meter.take() == ({}, {}, {})


def test_meter(texts: Endpoint, similarity: SimilarityEndpoint) -> None:
    texts.meter.take()
    texts.handle([json_row({"input": ["a", LONG, 5]}), Row(b"{", JSON), json_row({"input": LONG})])
    counts, errors, milliseconds = texts.meter.take()
    assert counts == {
        "ClipBatches": 1, "ClipRequests": 3, "ClipItems": 4, "ClipForwardPasses": 2, "ClipTextsTruncated": 2,
    }  # fmt: skip
    assert errors == {"invalid_item": 1, "invalid_json": 1}
    assert set(milliseconds) == {"parse", "tokenise", "inference", "serialise"}
    assert all(spent > 0 for spent in milliseconds.values())
    assert texts.meter.take() == ({}, {}, {})
    similarity.handle([json_row({"images": [in_base64(PICTURES[0]), "?"], "texts": ["a", "b"]})])
    counts, errors, milliseconds = similarity.meter.take()
    assert (counts["ClipItems"], counts["ClipForwardPasses"], errors) == (4, 2, {"invalid_base64": 1})
    assert "decode" in milliseconds


def test_requests_that_have_not_begun_when_the_time_is_up(
    text_encoder: ExportedTextEncoder, text_vectors: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Better than a worker killed for being late, which would fail the whole batch."""
    now = [0.0]
    monkeypatch.setattr("clipserve.cost.time.monotonic", lambda: now[0])
    embed = text_encoder.embed

    def slow(input_ids: Any, attention_mask: Any) -> FloatArray:
        now[0] += 6
        return embed(input_ids, attention_mask)

    monkeypatch.setattr(text_encoder, "embed", slow)
    # Rows 2 and 3 are of so different a length that they get a forward pass each.
    endpoint = text_endpoint(text_encoder, Settings(max_batch=2, max_seconds=13))
    rows = [json_row({"input": TEXTS[i]}) for i in (0, 1, 2, 3, 4)]
    replies = endpoint.handle([*rows, Row(b"{", JSON), rows[0]])
    assert [reply.status for reply in replies] == [200, 200, 200, 200, 503, 400, 503]
    assert error_code(replies[4]) == (503, "overloaded")
    assert_close(np.concatenate([vectors(reply) for reply in replies[:4]]), text_vectors[:4])
    # The next batch starts anew.
    assert [reply.status for reply in endpoint.handle(rows[:1])] == [200]


def test_encoders_of_two_spaces_are_refused(
    image_encoder: ExportedImageEncoder, text_encoder: ExportedTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = json.loads(text_encoder.spec.to_json()) | {"space_id": "of another pair"}
    monkeypatch.setattr(text_encoder, "spec", text_encoder.spec.from_json(json.dumps(other), "x"))
    with pytest.raises(SpecError, match="not of one embedding space"):
        SimilarityEndpoint(image_encoder, text_encoder, Settings())


# ---- the text cache


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


def cached(inner: Counting, capacity: int) -> CachedTextEmbedder:
    of_one = np.zeros(2, np.float32).nbytes + ENTRY_BYTES
    return CachedTextEmbedder(inner, capacity * of_one)  # type: ignore[arg-type]


def lengths(results: Sequence[Embedded | RequestError]) -> list[Any]:
    return [int(r.embedding[0]) if isinstance(r, Embedded) else r.code for r in results]


def test_cache_asks_for_each_text_once(inner: Counting) -> None:
    cache = cached(inner, 10)
    assert lengths(cache(["a", "bb", "a", "a"], AMPLE)) == [1, 2, 1, 1]
    assert lengths(cache(["ccc", "bb", "a"], AMPLE)) == [3, 2, 1]
    assert inner.asked == [["a", "bb"], ["ccc"]]
    assert (cache.hits, cache.misses) == (4, 3)


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


# ---- settings


def test_settings() -> None:
    assert Settings.from_mapping({}) == Settings()
    section = {
        "threads": 2, "max_batch": 8, "max_seconds": 9, "text_cache_bytes": 5, "max_bytes": 7,
        "max_memory": 8, "max_scans": 4, "max_structures": 6, "color": "ignore", "formats": ["PNG"],
        "max_items": 1, "max_texts": 2, "max_characters": 3, "draft_factor": 0, "max_aspect_ratio": 9,
        "max_request_seconds": 6,
    }  # fmt: skip
    assert Settings.from_mapping(section) == Settings(
        threads=2,
        max_batch=8,
        max_seconds=9,
        max_request_seconds=6,
        text_cache_bytes=5,
        draft_factor=0,
        color="ignore",
        images=ImageLimits(
            max_bytes=7, max_memory=8, max_aspect_ratio=9, max_scans=4, max_structures=6, formats=("PNG",)
        ),
        requests=RequestLimits(max_items=1, max_texts=2, max_characters=3),
    )


@pytest.mark.parametrize("key", ["thread", "", "images", "requests", "maxBatch"])
def test_unknown_settings(key: str) -> None:
    with pytest.raises(SpecError, match=f"{key!r} is unknown; allowed are threads, "):
        Settings.from_mapping({key: 1})


@pytest.mark.parametrize(
    "key", ["threads", "max_batch", "text_cache_bytes", "max_bytes", "max_items", "max_texts"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "8", None, True, [1]], ids=str)
def test_settings_that_are_no_number(key: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"{key}: .*whole number >= 1"):
        Settings.from_mapping({key: value})


def test_a_draft_factor_below_0() -> None:
    with pytest.raises(SpecError, match="draft_factor: -1, should be a whole number >= 0"):
        Settings.from_mapping({"draft_factor": -1})


@pytest.mark.parametrize("value", ["sRGB", "", None, 1, ["srgb"]], ids=str)
def test_colors_that_are_no_choice(value: Any) -> None:
    with pytest.raises(SpecError, match=r"color: .*one of srgb, ignore"):
        Settings.from_mapping({"color": value})


@pytest.mark.parametrize("value", ["JPEG", [], None, ["JPG"], [5], 5], ids=str)
def test_formats_that_are_no_list_of_formats(value: Any) -> None:
    with pytest.raises(SpecError, match="formats"):
        Settings.from_mapping({"formats": value})


# ---- TorchServe


@dataclass
class Metrics:
    """What was reported: metric, value and dimensions; a report may come at any time, from its own thread."""

    updates: list[tuple[str, float, list[str]]] = field(default_factory=list)

    def get_metric(self, name: str) -> Metric:
        return Metric(name, self.updates)


@dataclass
class Metric:
    name: str
    updates: list[tuple[str, float, list[str]]]

    def add_or_update(self, count: float, dimensions: list[str]) -> None:
        self.updates.append((self.name, count, dimensions))


@dataclass
class Context:
    """What our handlers use of TorchServe's context."""

    model_dir: Path = Path()
    gpu_id: int | None = None
    model_yaml_config: dict[str, Any] | None = None
    headers: list[dict[str, str]] = field(default_factory=list)
    statuses: dict[int, tuple[int, str]] = field(default_factory=dict)
    content_types: dict[int, str] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    response_headers: dict[tuple[int, str], str] = field(default_factory=dict)
    model_name: str = "clip_text"

    def get_request_id(self, index: int) -> str:
        return f"request-{index}"

    @property
    def system_properties(self) -> dict[str, Any]:
        return {"model_dir": str(self.model_dir), "gpu_id": self.gpu_id}

    def get_request_header(self, index: int, key: str) -> str | None:
        return self.headers[index].get(key)

    def get_all_request_header(self, index: int) -> dict[str, str]:
        return self.headers[index]

    def set_response_status(self, code: int, phrase: str, index: int) -> None:
        self.statuses[index] = (code, phrase)

    def set_response_content_type(self, index: int, value: str) -> None:
        self.content_types[index] = value

    def set_response_header(self, index: int, name: str, value: str) -> None:
        self.response_headers[index, name] = value


def unpacked_archive(folder: Path, *encoders: Path) -> Path:
    """A folder as TorchServe unpacks it: encoder files and their sums."""
    folder.mkdir(exist_ok=True)
    for path in encoders:
        shutil.copy(path, folder)
    sums = [f"{file_sha256(path)}  {path.name}" for path in sorted(folder.glob("*.pt"))]
    (folder / SUMS_FILE).write_text("\n".join(sums) + "\n")
    return folder


@pytest.fixture(scope="module")
def model_dir(image_path: Path, text_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked_archive(tmp_path_factory.mktemp("model_dir"), image_path, text_path)


Start = Callable[..., TorchServeHandler]


@pytest.fixture
def start(model_dir: Path) -> Start:
    def started(kind: type[TorchServeHandler], **options: Any) -> TorchServeHandler:
        handler = kind()
        handler.initialize(Context(model_dir, **options))
        return handler

    return started


def parameters(**values: Any) -> list[dict[str, Any]]:
    """A row as it comes off the wire: a body, or parts, whose pictures are files."""
    return [
        {"name": n, "contentType": "image/jpeg" if len(n) == 1 or n == "data" else "", "value": v}
        for n, v in values.items()
    ]


def ask(
    handler: TorchServeHandler, rows: list[dict[str, Any]], content_types: list[str | None]
) -> tuple[list[Any], Context]:
    headers = [{} if c is None else {"Content-Type": c, "Host": "x"} for c in content_types]
    context = Context(headers=headers)
    bodies = handler.handle([parameters(**row) for row in rows], context)
    assert len(bodies) == len(rows)
    return bodies, context


def test_torchserve_raw_bodies(start: Start, text_vectors: FloatArray) -> None:
    bodies, context = ask(
        start(ClipTextHandler),
        [{"body": TEXTS[0].encode()}, {"body": b"{"}, {"body": json.dumps({"input": TEXTS[:3]}).encode()}],
        ["text/plain", "application/json", "application/json"],
    )
    assert all(isinstance(body, bytes) for body in bodies)
    assert context.statuses == {1: (400, "Bad Request")}
    assert context.content_types == {0: JSON, 1: JSON, 2: JSON}
    assert_close(json.loads(bodies[0])["data"][0]["embedding"], text_vectors[0])
    assert json.loads(bodies[1])["error"]["code"] == "invalid_json"
    assert_close([e["embedding"] for e in json.loads(bodies[2])["data"]], text_vectors[:3])


def test_torchserve_status_is_of_its_row_only(start: Start) -> None:
    bodies, context = ask(
        start(ClipImageHandler),
        [
            {"body": bytearray(PICTURES[0])},
            {"body": b"no"},
            {"body": bytearray(PICTURES[1])},
            {"body": b""},
            {},
        ],
        ["image/jpeg", "image/jpeg", None, None, "multipart/form-data; boundary=x"],
    )
    assert context.statuses == {
        1: (415, "Unsupported Media Type"),
        3: (400, "Bad Request"),
        4: (415, "Unsupported Media Type"),
    }
    assert ["data" in json.loads(body) for body in bodies] == [True, False, True, False, False]


def test_torchserve_413_has_a_phrase(start: Start) -> None:
    config = {"handler": {"max_items": 1}}
    _, context = ask(
        start(ClipTextHandler, model_yaml_config=config),
        [{"body": b'{"input":["a","b"]}'}],
        ["application/json"],
    )
    assert context.statuses[0][0] == 413
    assert context.statuses[0][1]


def test_torchserve_bodies_that_it_has_parsed_already(start: Start, text_vectors: FloatArray) -> None:
    """So they come unless `decode_input_request=false` is configured."""
    bodies, context = ask(
        start(ClipTextHandler),
        [{"body": {"input": [TEXTS[3]]}}, {"body": TEXTS[3]}, {"body": ["a"]}, {"body": {"input": "\ud800"}}],
        ["application/json", "text/plain", "application/json", "application/json"],
    )
    for body in bodies[:2]:
        assert_close(json.loads(body)["data"][0]["embedding"], text_vectors[3])
    assert [json.loads(body)["error"]["code"] for body in bodies[2:]] == [
        "invalid_request",
        "invalid_encoding",
    ]
    assert context.statuses == {2: (400, "Bad Request"), 3: (400, "Bad Request")}


@pytest.mark.parametrize("value", ["two dogs", "\ud800"], ids=ascii)
def test_torchserve_json_string_that_it_has_parsed_already(start: Start, value: str) -> None:
    """A lone surrogate must not fail the whole batch either."""
    bodies, context = ask(start(ClipTextHandler), [{"body": value}], ["application/json"])
    assert context.statuses == {0: (400, "Bad Request")}
    assert json.loads(bodies[0])["error"]["code"] == "invalid_request"


@pytest.mark.parametrize("header", ["content-type", "Content-Type", "CONTENT-TYPE"])
@pytest.mark.parametrize(
    "value", ["application/json", "Application/JSON; charset=UTF-8", " application/json ;x=y"]
)
def test_torchserve_content_type_in_any_case(start: Start, header: str, value: str) -> None:
    context = Context(headers=[{header: value}])
    body = start(ClipTextHandler).handle([parameters(body=b'{"input": "a"}')], context)[0]
    assert json.loads(body)["usage"]["prompt_tokens"] == 3
    assert context.statuses == {}


def test_torchserve_forms(start: Start, picture_vectors: FloatArray) -> None:
    form = "multipart/form-data; boundary=0f3a"
    bodies, context = ask(
        start(ClipImageHandler),
        [{"a": bytearray(PICTURES[2]), "b": PICTURES[0]}, {"data": bytearray(b"no picture")}],
        [form, form],
    )
    assert_close([e["embedding"] for e in json.loads(bodies[0])["data"]], picture_vectors[[2, 0]])
    assert context.statuses == {1: (415, "Unsupported Media Type")}
    # A part's own content type may have been decoded: JSON to a list, text to a string.
    parts = {"a": PICTURES[0], "labels": ["dog", "cat"], "template": "a photo of a {}"}
    bodies, context = ask(
        start(ClipSimilarityHandler), [parts, {**parts, "labels": b'["dog", "cat"]'}], [form, form]
    )
    assert context.statuses == {}
    assert json.loads(bodies[0])["cosine_similarity"] == json.loads(bodies[1])["cosine_similarity"]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Any:
    """TorchServe's own code between the socket and `handle`, as it is installed; put back afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its version file open
        service = importlib.import_module("ts.service").Service
    monkeypatch.setattr(
        service, "retrieve_data_for_inference", staticmethod(service.retrieve_data_for_inference)
    )
    return service


def off_the_wire(*parts: tuple[str, str, bytes]) -> dict[str, Any]:
    """A request as `ts.protocol.otf_message_handler` reads it from the frontend."""
    return {
        "requestId": b"0",
        "headers": [{"name": b"Content-Type", "value": b"multipart/form-data; boundary=x"}],
        "parameters": [{"name": n, "contentType": c, "value": bytearray(v)} for n, c, v in parts],
    }


def test_torchserve_hands_over_every_part(service: Any, start: Start, picture_vectors: FloatArray) -> None:
    """CASES 1: two pictures of one name; its `Service` by itself keeps the last of them."""
    request = off_the_wire(
        ("a", "image/jpeg", PICTURES[2]), ("a", "image/jpeg", PICTURES[0]), ("a", "image/png", PICTURES[2])
    )
    _, before, _ = service.retrieve_data_for_inference([request])
    assert len(before[0]) == 1
    handler = start(ClipImageHandler)
    processors, rows, ids = service.retrieve_data_for_inference([request, request])
    assert ids == {0: "0", 1: "0"}
    headers = [p._request_header for p in processors]
    bodies = handler.handle(rows, Context(headers=headers))
    for body in bodies:
        found = [e["embedding"] for e in json.loads(body)["data"]]
        assert_close(found, picture_vectors[[2, 0, 2]])


def test_torchserve_bodies_are_held_once(service: Any, start: Start) -> None:
    """ATTACKS A3: 32 MB each, as a bytearray off the wire and as bytes."""
    start(ClipImageHandler)
    request = off_the_wire(("body", "image/jpeg", PICTURES[0]))
    _, ((parameter,),), _ = service.retrieve_data_for_inference([request])
    assert parameter["value"] == PICTURES[0]
    assert type(parameter["value"]) is bytes
    assert request["parameters"] == [parameter]
    assert request["parameters"][0] is parameter


def test_torchserve_fields_given_twice(service: Any, start: Start) -> None:
    """CASES 1: of two lists of texts it would drop one."""
    handler = start(ClipSimilarityHandler)
    request = off_the_wire(("a", "image/jpeg", PICTURES[0]), ("texts", "", b'["a"]'), ("texts", "", b'["b"]'))
    processors, rows, _ = service.retrieve_data_for_inference([request])
    context = Context(headers=[p._request_header for p in processors])
    (body,) = handler.handle(rows, context)
    assert context.statuses == {0: (400, "Bad Request")}
    assert "twice" in json.loads(body)["error"]["message"]


def test_torchserve_parts_named_as_headers(start: Start) -> None:
    """It mixes the names of parts among the headers."""
    headers: dict[str, Any] = {
        "content-encoding": {"content-type": "image/jpeg"},
        "content-type": {"content-type": "image/jpeg"},
        "Content-Type": "multipart/form-data; boundary=x",
    }
    context = Context(headers=[headers])
    row = [
        {"name": name, "contentType": "image/jpeg", "value": PICTURES[0]}
        for name in ("content-encoding", "content-type", "describe")
    ]
    (body,) = start(ClipImageHandler).handle([row], context)
    assert len(json.loads(body)["data"]) == 3


@pytest.mark.parametrize("content_type", ["multipart/form-data", "Multipart/Form-Data; charset=utf-8"])
def test_torchserve_forms_that_it_has_not_read(
    start: Start, picture_vectors: FloatArray, content_type: str
) -> None:
    """CASES 1: without a boundary its frontend hands over the whole body, under the name of a raw one."""
    context = Context(
        headers=[{"Content-Type": content_type}, {"Content-Type": "multipart/form-data; boundary=x"}]
    )
    raw = [{"name": "body", "contentType": "multipart/form-data", "value": PICTURES[0]}]
    file = [{"name": "body", "contentType": "image/jpeg", "value": PICTURES[0]}]
    refused, taken = start(ClipImageHandler).handle([raw, file], context)
    assert context.statuses == {0: (400, "Bad Request")}
    assert "multipart body cannot be read" in json.loads(refused)["error"]["message"]
    assert_close([e["embedding"] for e in json.loads(taken)["data"]], picture_vectors[[0]])


def test_torchserve_forms_under_another_type(start: Start) -> None:
    """Of two Content-Type headers the frontend reads the first and hands on the last; nobody else is hurt."""
    context = Context(headers=[{"Content-Type": "image/jpeg"}, {"Content-Type": "image/jpeg"}])
    two = [{"name": "a", "contentType": "image/jpeg", "value": PICTURES[i]} for i in (0, 1)]
    bodies = start(ClipImageHandler).handle([two, parameters(body=PICTURES[0])], context)
    assert [len(json.loads(body)["data"]) for body in bodies] == [2, 1]


def test_another_torchserve_is_refused(monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    """CASES 1: whatever hands over parts otherwise may lose some; a worker does not start on it."""

    class Service:
        @staticmethod
        def retrieve_data_for_inference(batch: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
            return [], [{"a": [1, 2]}], {}

        def predict(self, batch: list[dict[str, Any]]) -> None:
            self.retrieve_data_for_inference(batch)

    monkeypatch.setitem(sys.modules, "ts.service", SimpleNamespace(Service=Service))
    with pytest.raises(SpecError, match=r"torchserve==0\.12\.0"):
        start(ClipImageHandler)


def test_torchserve_content_encoding(start: Start) -> None:
    """CASES 25."""
    context = Context(headers=[{"Content-Type": "image/png", "content-ENCODING": "gzip"}])
    (body,) = start(ClipImageHandler).handle([parameters(body=b"x")], context)
    assert context.statuses == {0: (415, "Unsupported Media Type")}
    assert "Content-Encoding is 'gzip'" in json.loads(body)["error"]["message"]


def reported(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Sums by metric and second dimension; the first is the endpoint's name in each."""
    sums: dict[tuple[str, str], float] = {}
    for name, count, (model, dimension) in metrics.updates:
        assert model == "clip_similarity"
        sums[name, dimension] = sums.get((name, dimension), 0.0) + count
    return sums


def test_torchserve_metrics_are_those_that_are_declared(model_dir: Path) -> None:
    """TorchServe refuses a metric that is not in the metrics file."""
    declared = yaml.safe_load((Path(__file__).parents[2] / "metrics.yaml").read_text())["model_metrics"][
        "counter"
    ]
    dimensions = {metric["name"]: metric["dimensions"] for metric in declared}
    context = Context(model_dir, model_name="clip_similarity")
    handler = ClipSimilarityHandler()
    handler.initialize(context)
    for _ in range(2):
        ask(
            handler,
            [
                {"body": json.dumps({"images": in_base64(PICTURES[0]), "texts": ["a", "b", 5]}).encode()},
                {"body": b"{"},
            ],
            ["application/json"] * 2,
        )
    stages = {
        (f"Clip{stage}Milliseconds", "Model")
        for stage in ("Parse", "Decode", "Tokenise", "Inference", "Serialise")
    }
    counts = {
        ("ClipRequests", "Model"): 4,
        ("ClipBatches", "Model"): 2,
        ("ClipItems", "Model"): 8,
        ("ClipTextCacheMisses", "Model"): 2,
        ("ClipTextCacheHits", "Model"): 2,
        ("ClipErrors", "invalid_item"): 2,
        ("ClipErrors", "invalid_json"): 2,
    }
    # Each metric comes by itself: a look at a report under way may see some and not yet the others.
    deadline = time.monotonic() + 30
    found = reported(context.metrics)
    while not (counts.items() <= found.items() and stages <= set(found)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
        found = reported(context.metrics)
    assert all(found[stage] > 0 for stage in stages)
    assert {name for name, _ in found} <= set(dimensions)
    for name, dimension in found:
        assert dimensions[name] == ["ModelName", "Level" if dimension == "Model" else "Code"]


def test_torchserve_metrics_are_reported_once() -> None:
    metrics = Metrics()
    reporter = Reporter(metrics, "clip_image")
    reporter.add({"ClipItems": 3}, {"invalid_image": 1}, {"decode": 0.25})
    reporter.add({"ClipItems": 4}, {}, {"decode": 0.5})
    assert metrics.updates == []
    reporter.report()
    reporter.report()
    assert sorted(metrics.updates) == [
        ("ClipDecodeMilliseconds", 0.75, ["clip_image", "Model"]),
        ("ClipErrors", 1, ["clip_image", "invalid_image"]),
        ("ClipItems", 7, ["clip_image", "Model"]),
    ]


def test_torchserve_times_for_the_caller_who_asks(start: Start) -> None:
    context = Context(headers=[{}, {"X-ClipServe-Timing": "1"}, {}])
    start(ClipTextHandler).handle([parameters(body=b) for b in (b"a", b"b", b"\xff")], context)
    assert list(context.response_headers) == [(1, "Server-Timing")]
    timing = context.response_headers[1, "Server-Timing"]
    assert re.fullmatch(r"(\w+;dur=\d+\.\d\d)(, \w+;dur=\d+\.\d\d)*", timing)
    assert "inference;dur=" in timing


@pytest.mark.parametrize(
    ("kind", "modalities"),
    [(ClipImageHandler, ["image"]), (ClipTextHandler, ["text"]), (ClipSimilarityHandler, ["image", "text"])],
)
def test_torchserve_describe(
    start: Start, kind: type[TorchServeHandler], modalities: list[str], store: Path
) -> None:
    body = start(kind).handle([[]], Context(headers=[{"describe": "True"}]))[0]
    described = json.loads(body)["encoders"]
    assert described == [json.loads(read_spec(store / f"clip-{m}-cpu-fp32.pt").to_json()) for m in modalities]


def test_torchserve_describe_header_of_a_caller_changes_nothing(start: Start) -> None:
    context = Context(headers=[{"describe": "True", "content-type": "text/plain"}, {}])
    bodies = start(ClipTextHandler).handle([parameters(body=b"two dogs"), parameters(body=b"a cat")], context)
    assert [json.loads(body)["object"] for body in bodies] == ["list", "list"]


def test_torchserve_settings_reach_the_worker(start: Start) -> None:
    config = {"minWorkers": 1, "deviceType": "cpu", "handler": {"threads": 2, "max_characters": 5}}
    handler = start(ClipTextHandler, model_yaml_config=config)
    assert torch.get_num_threads() == 2
    bodies, _ = ask(handler, [{"body": b"123456"}], ["text/plain"])
    assert json.loads(bodies[0])["error"]["code"] == "text_too_long"
    for empty in ({}, {"handler": None}, None):
        start(ClipTextHandler, model_yaml_config=empty)
        assert torch.get_num_threads() == 1


def test_torchserve_wrong_settings(start: Start) -> None:
    with pytest.raises(SpecError, match="'max_batches' is unknown"):
        start(ClipTextHandler, model_yaml_config={"handler": {"max_batches": 8}})


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_torchserve_gives_a_gpu_that_pytorch_does_not_see(start: Start) -> None:
    with pytest.raises(SpecError, match=r"GPU 0, but this PyTorch sees no CUDA device; set deviceType: cpu"):
        start(ClipTextHandler, gpu_id=0)


def test_torchserve_gives_no_gpu_where_the_archive_wants_one(start: Start) -> None:
    with pytest.raises(SpecError, match=r"deviceType: gpu .* gave this worker no GPU"):
        start(ClipTextHandler, model_yaml_config={"deviceType": "gpu"})


def test_torchserve_archive_without_the_encoder(image_path: Path, tmp_path: Path) -> None:
    folder = unpacked_archive(tmp_path / "archive", image_path)
    handler = ClipSimilarityHandler()
    with pytest.raises(
        SpecError, match=r"no text encoder for cpu here, only clip-image-cpu-fp32.pt; run 'make export"
    ):
        handler.initialize(Context(folder))


def test_torchserve_archive_that_was_changed(text_path: Path, tmp_path: Path) -> None:
    folder = unpacked_archive(tmp_path / "archive", text_path)
    (folder / text_path.name).write_bytes(text_path.read_bytes() + b"\0")
    with pytest.raises(SpecError, match=r"clip-text-cpu-fp32\.pt was changed after it was packaged"):
        ClipTextHandler().initialize(Context(folder))
    (folder / text_path.name).unlink()
    with pytest.raises(SpecError, match=r"clip-text-cpu-fp32\.pt is missing from the archive"):
        ClipTextHandler().initialize(Context(folder))
    (folder / SUMS_FILE).write_bytes(b"\xff\xfe damaged")  # ATTACKS B2
    with pytest.raises(SpecError, match=f"no {SUMS_FILE}"):
        ClipTextHandler().initialize(Context(folder))
    (folder / SUMS_FILE).unlink()
    with pytest.raises(SpecError, match=f"no {SUMS_FILE}"):
        ClipTextHandler().initialize(Context(folder))


@pytest.mark.gpu
def test_worker_on_a_gpu_refuses_an_archive_for_the_cpu(start: Start) -> None:
    with pytest.raises(SpecError, match=r"no text encoder for cuda here, only .*cpu"):
        start(ClipTextHandler, gpu_id=0)
