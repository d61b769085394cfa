from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipserve.certificate import Golden, ParityCertificate
from clipserve.encoder_spec import (
    PARITY_BOUNDS,
    SCHEMA_VERSION,
    EncoderSpec,
    Score,
    ScoreKind,
    decode_vector,
)
from clipserve.errors import RequestError
from clipserve.preprocessing import ImagePreprocessing
from clipserve.wire.messages import (
    Embedded,
    EmbeddingRequest,
    EncodingFormat,
    Result,
    Usage,
)
from clipserve.wire.native import (
    encode_embeddings,
    encode_error,
)
from clipserve.wire.rows import JSON, Reply
from clipserve.wire.similarity import SimilarityRequest
from clipserve.wire.similarity import encode as encode_similarity
from tests.clipserve.wire.bodies import (
    KNOWN_COSINES,
    KNOWN_PROBABILITIES,
)

SOFTMAX = Score("softmax", 100.0)
SIGMOID = Score("sigmoid", 100.0, -10.0)


def spec(score: Score = SOFTMAX) -> EncoderSpec:
    return EncoderSpec(
        schema_version=SCHEMA_VERSION,
        format="torchscript",
        cpu_capability=None,
        model_id="clip-ViT-B-32",
        checkpoint="clip-ViT-B-32",
        license="mit",
        modality="image",
        embedding_dim=3,
        normalized=True,
        device="cpu",
        precision="fp32",
        image=ImagePreprocessing(224, 224, 224, "bicubic", (0.5,) * 3, (0.25,) * 3),
        text=None,
        score=score,
        checkpoint_sha256="c",
        artifact_sha256="t",
        space_id="0123456789abcdef",
        versions={},
        certificate=ParityCertificate(PARITY_BOUNDS["fp32"], 0.0, 1.0, 1.0, (), Golden("", "")),
    )


def vector(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, dtype=np.float32)


def body_of(reply: Reply) -> Any:
    """The parsed body, after checking that it is valid, compact JSON in UTF-8."""

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert reply.content_type == JSON
    text = reply.body.decode("utf-8")
    body = json.loads(text, parse_constant=no_constant)
    # Python writes 1e+16 where others write 1e16: numbers are compared as numbers.
    compact = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    assert re.sub(NUMBER, "0", text) == re.sub(NUMBER, "0", compact)
    return body


NUMBER = r"-?\d+(\.\d+)?([eE][+-]?\d+)?"


def embeddings_of(results: Sequence[Result], encoding_format: EncodingFormat) -> Reply:
    return encode_embeddings(spec(), EmbeddingRequest[str]([], encoding_format), [results])


def similarity_of(spec: EncoderSpec, images: Sequence[Result], texts: Sequence[Result]) -> Reply:
    return encode_similarity(spec, SimilarityRequest([], []), [images, texts])


def test_embedding_response() -> None:
    results: list[Embedded | RequestError] = [
        Embedded(vector(0.6, -0.8, 0.1), Usage(7, 1, 2)),
        RequestError("invalid_image", "broken “file”"),
        Embedded(vector(1, 0, 0), Usage(3)),
    ]
    reply = embeddings_of(results, "float")
    assert reply.status == 200
    body = body_of(reply)
    first = body["data"][0].pop("embedding")
    assert body == {
        "object": "list",
        "model": "clip-ViT-B-32",
        "space_id": "0123456789abcdef",
        "embedding_dim": 3,
        "data": [
            {"object": "embedding", "index": 0},
            {"object": "error", "index": 1, "error": {"code": "invalid_image", "message": "broken “file”"}},
            {"object": "embedding", "index": 2, "embedding": [1.0, 0.0, 0.0]},
        ],
        "usage": {"prompt_tokens": 10, "truncated": 1, "unknown_tokens": 2},
    }
    assert np.array_equal(np.array(first, dtype=np.float32), vector(0.6, -0.8, 0.1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=20))
def test_base64_and_float_say_the_same_float32(values: list[float]) -> None:
    result = [Embedded(vector(*values))]
    floats = body_of(embeddings_of(result, "float"))["data"][0]["embedding"]
    text = body_of(embeddings_of(result, "base64"))["data"][0]["embedding"]
    assert base64.b64decode(text, validate=True) == np.array(floats, dtype="<f4").tobytes()
    assert np.array_equal(decode_vector(text), vector(*values))
    assert decode_vector(text).dtype == np.float32


def test_every_float32_is_read_back_to_the_bit() -> None:
    """Through Python's parser, as float64: a million bit patterns of all magnitudes, the ends, both zeros."""
    bits = np.random.default_rng(0).integers(0, 2**32, 1_000_000, dtype=np.uint32)
    values = bits.view(np.float32)
    ends = vector(0, -0.0, 1e-45, np.finfo(np.float32).max, np.finfo(np.float32).tiny, 1 / 3)
    values = np.concatenate([ends, values[np.isfinite(values)]])
    written = embeddings_of([Embedded(values)], "float").body
    read = np.array(json.loads(written)["data"][0]["embedding"], dtype=np.float32)
    assert np.array_equal(read.view(np.uint32), values.view(np.uint32))


def test_a_float32_has_no_more_digits_than_it_needs() -> None:
    assert (
        b'"embedding":[0.1,-0.8,0.33333334,1.0]'
        in embeddings_of([Embedded(vector(0.1, -0.8, 1 / 3, 1))], "float").body
    )


def test_response_without_any_success_is_the_first_error_with_its_index() -> None:
    errors = [RequestError("image_too_large", "big", 413), RequestError("invalid_image", "bad")]
    reply = embeddings_of(errors, "float")
    assert reply.status == 413
    assert body_of(reply) == {"error": {"code": "image_too_large", "message": "big", "index": 0}}


def test_error_response() -> None:
    reply = encode_error(RequestError("invalid_json", "漢 \ud800"[:1], 400))
    assert reply.status == 400
    assert body_of(reply) == {"error": {"code": "invalid_json", "message": "漢"}}


def at_cosine(cosine: float) -> Embedded:
    """A text at this cosine from (1, 0, 0)."""
    return Embedded(vector(cosine, np.sqrt(1 - cosine**2), 0), Usage(5))


def test_similarity_known_answer() -> None:
    reply = similarity_of(spec(), [Embedded(vector(1, 0, 0))], [at_cosine(c) for c in KNOWN_COSINES])
    assert reply.status == 200
    body = body_of(reply)
    np.testing.assert_allclose(body["cosine_similarity"], [KNOWN_COSINES], atol=1e-7)
    np.testing.assert_allclose(body["probabilities"], [KNOWN_PROBABILITIES], rtol=1e-3)
    assert {key: body[key] for key in body if key not in ("cosine_similarity", "probabilities")} == {
        "object": "similarity",
        "model": "clip-ViT-B-32",
        "space_id": "0123456789abcdef",
        "embedding_dim": 3,
        "score": "softmax",
        "logit_scale": 100.0,
        "logit_bias": 0.0,
        "errors": [],
        "usage": {"prompt_tokens": 15, "truncated": 0, "unknown_tokens": 0},
    }


def test_similarity_uses_the_scale_of_the_spec() -> None:
    images, texts = [Embedded(vector(1, 0, 0))], [at_cosine(0.5), at_cosine(0.25)]
    body = body_of(similarity_of(spec(Score("softmax", 4.0)), images, texts))
    expected = 1 / (1 + np.exp(-4.0 * 0.25))
    np.testing.assert_allclose(body["probabilities"][0], [expected, 1 - expected], rtol=1e-6)


@pytest.mark.parametrize("own", [SOFTMAX, SIGMOID], ids=lambda score: score.kind)
@pytest.mark.parametrize("asked", [None, "softmax", "sigmoid"])
def test_the_score_is_the_pairs_own_or_what_is_asked_for(own: Score, asked: ScoreKind | None) -> None:
    images, texts = [Embedded(vector(1, 0, 0))], [at_cosine(0.11), at_cosine(0.1), at_cosine(0.08)]
    body = body_of(encode_similarity(spec(own), SimilarityRequest([], [], asked), [images, texts]))
    assert body["score"] == (asked or own.kind)
    assert (body["logit_scale"], body["logit_bias"]) == (own.scale, own.bias)
    if body["score"] == "softmax":
        e = np.exp([11.0, 10.0, 8.0])
        expected = e / e.sum()
    else:
        expected = 1 / (1 + np.exp(-(np.array([11.0, 10.0, 8.0]) + own.bias)))
    np.testing.assert_allclose(body["probabilities"], [expected], rtol=1e-4)


BAD = RequestError("invalid_image", "bad")


@settings(max_examples=150, deadline=None)
@given(
    images=st.lists(st.booleans(), min_size=1, max_size=5),
    texts=st.lists(st.booleans(), min_size=1, max_size=5),
    seed=st.integers(0, 999),
)
def test_similarity_nulls_and_sums(images: list[bool], texts: list[bool], seed: int) -> None:
    """Nulls stand where an item failed, the other numbers are those without the failed items."""
    rng = np.random.default_rng(seed)

    def results(good: list[bool]) -> list[Embedded | RequestError]:
        return [Embedded(rng.normal(size=3).astype(np.float32), Usage(2)) if g else BAD for g in good]

    image_results, text_results = results(images), results(texts)
    reply = similarity_of(spec(Score("softmax", 5.0)), image_results, text_results)
    body = body_of(reply)
    if not any(images) or not any(texts):
        assert reply.status == 400
        kind = images if not all(images) else texts
        assert body == {"error": {"code": "invalid_image", "message": "bad", "index": kind.index(False)}}
        return
    assert reply.status == 200
    alone = body_of(
        similarity_of(
            spec(Score("softmax", 5.0)),
            [r for r in image_results if isinstance(r, Embedded)],
            [r for r in text_results if isinstance(r, Embedded)],
        )
    )
    for name in ("cosine_similarity", "probabilities"):
        assert [row is not None for row in body[name]] == images
        rows = [row for row in body[name] if row is not None]
        assert all([value is not None for value in row] == texts for row in rows)
        kept = [[value for value in row if value is not None] for row in rows]
        np.testing.assert_allclose(kept, alone[name], rtol=1e-12)
    for row in body["probabilities"]:
        assert row is None or sum(p for p in row if p is not None) == pytest.approx(1)
    assert body["errors"] == [
        {"input": kind, "error": {"code": "invalid_image", "message": "bad", "index": index}}
        for kind, good in (("images", images), ("texts", texts))
        for index, is_good in enumerate(good)
        if not is_good
    ]
    assert body["usage"]["prompt_tokens"] == 2 * sum(texts)


def test_usage_adds_up() -> None:
    assert Usage(1, 0, 2) + Usage(10, 1, 0) == Usage(11, 1, 2)
