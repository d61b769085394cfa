from __future__ import annotations

import base64
import json
import random
from typing import Any

import numpy as np
import pytest

from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import FloatArray
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import SpecError
from clipserve.pipeline import Pipeline
from clipserve.settings import Settings
from clipserve.wire.rows import JSON, Part, Row
from tests.clipserve.answers import (
    LONG,
    MULTIPART,
    PICTURES,
    TEXTS,
    assert_close,
    body_of,
    error_code,
    in_base64,
    json_row,
    vectors,
)


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


def test_every_way_to_send_a_text(texts: Pipeline) -> None:
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


def test_every_way_to_send_a_picture(images: Pipeline, picture_vectors: FloatArray) -> None:
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


def test_text_usage(texts: Pipeline, text_encoder: ExportedTextEncoder) -> None:
    reply = texts.handle([json_row({"input": ["Two dogs", LONG, "☃ ☃"]})])[0]
    counted = [text_encoder.tokenizer.tokenize(t) for t in ("Two dogs", LONG, "☃ ☃")]
    assert body_of(reply)["usage"] == {
        "prompt_tokens": sum(len(t.ids) for t in counted),
        "truncated": 1,
        "unknown_tokens": 2,
    }
    assert len(counted[1].ids) == 128


def test_responses_say_which_space_they_are_of(texts: Pipeline, images: Pipeline) -> None:
    text = body_of(texts.handle([json_row({"input": "a"})])[0])
    image = body_of(images.handle([Row(PICTURES[0], "")])[0])
    for body, endpoint in ((text, texts), (image, images)):
        spec = endpoint.specs[0]
        assert (body["model"], body["space_id"], body["embedding_dim"]) == ("clip", spec.space_id, 32)
    assert text["space_id"] == image["space_id"]


def test_bad_text_rows_fail_alone(texts: Pipeline, text_vectors: FloatArray) -> None:
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


def test_bad_image_rows_fail_alone(images: Pipeline, picture_vectors: FloatArray) -> None:
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


def test_all_rows_bad(texts: Pipeline, images: Pipeline, similarity: Pipeline) -> None:
    for endpoint in (texts, images, similarity):
        replies = endpoint.handle([Row(b"{", JSON), Row(b"[]", JSON), Row(b"", JSON)])
        assert [error_code(r) for r in replies] == [
            (400, "invalid_json"), (400, "invalid_request"), (400, "empty_request"),
        ]  # fmt: skip


def test_request_without_any_good_item_gets_its_first_error(images: Pipeline) -> None:
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
    endpoint = Pipeline(ENDPOINTS["clip_text"], [text_encoder], Settings(max_batch=max_batch))
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
    texts: Pipeline, text_vectors: FloatArray, text: int, neighbours: list[str]
) -> None:
    around = texts.handle([json_row({"input": [*neighbours, TEXTS[text], *neighbours]})])[0]
    assert_close(vectors(around)[len(neighbours)], text_vectors[text])
    rows = [json_row({"input": t}) for t in [*neighbours, TEXTS[text]]]
    assert_close(vectors(texts.handle(rows)[-1])[0], text_vectors[text])


@pytest.mark.parametrize("max_batch", [1, 3, 32])
def test_a_picture_is_embedded_as_if_alone(
    image_encoder: ExportedImageEncoder, picture_vectors: FloatArray, max_batch: int
) -> None:
    endpoint = Pipeline(ENDPOINTS["clip_image"], [image_encoder], Settings(max_batch=max_batch))
    order = [2, 0, 3, 3, 1, 0, 2]
    assert_close(
        np.concatenate([vectors(r) for r in endpoint.handle([Row(PICTURES[i], "") for i in order])]),
        picture_vectors[order],
    )


def test_nothing_is_run_for_no_items(texts: Pipeline, images: Pipeline) -> None:
    assert texts.handle([]) == []
    assert images.handle([]) == []


def test_similarity_is_that_of_the_embeddings(
    similarity: Pipeline, text_vectors: FloatArray, picture_vectors: FloatArray
) -> None:
    reply = similarity.handle([json_row({"images": [in_base64(p) for p in PICTURES], "texts": TEXTS})])[0]
    body = body_of(reply)
    expected = picture_vectors.astype(np.float64) @ text_vectors.T.astype(np.float64)
    assert_close(body["cosine_similarity"], expected)
    probabilities = np.array(body["probabilities"])
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
    logits = similarity.specs[0].score.scale * np.array(body["cosine_similarity"])
    np.testing.assert_allclose(
        probabilities, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-9
    )
    assert body["logit_scale"] == pytest.approx(np.exp(4.6052), rel=1e-6)
    assert body["errors"] == []


def test_similarity_batch_of_good_and_bad_rows(similarity: Pipeline) -> None:
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


def test_equal_labels_have_equal_probabilities(similarity: Pipeline) -> None:
    row = json_row({"images": in_base64(PICTURES[0]), "labels": ["dog", "cat", "dog"]})
    probabilities = body_of(similarity.handle([row])[0])["probabilities"][0]
    assert probabilities[0] == pytest.approx(probabilities[2], rel=1e-9)


@pytest.mark.parametrize(
    "body",
    [{"images": ["?"], "texts": ["a"]}, {"images": [in_base64(PICTURES[0])], "texts": [5]}],
    ids=["image", "text"],
)
def test_similarity_without_any_good_pair(similarity: Pipeline, body: dict[str, Any]) -> None:
    reply = similarity.handle([json_row(body)])[0]
    assert reply.status == 400
    assert body_of(reply)["error"]["index"] == 0


def test_similarity_counts_its_cache(similarity: Pipeline) -> None:
    def ask(*labels: str) -> dict[str, int]:
        similarity.handle([json_row({"images": in_base64(PICTURES[0]), "labels": labels})])
        counts, _, _ = similarity.meter.take()
        return {name: count for name, count in counts.items() if name.startswith("ClipTextCache")}

    assert ask("dog", "cat") == {"ClipTextCacheHits": 0, "ClipTextCacheMisses": 2}
    assert ask("cat", "dog", "cow", "dog") == {"ClipTextCacheHits": 3, "ClipTextCacheMisses": 1}
    assert similarity.meter.take() == ({}, {}, {})


def test_meter(texts: Pipeline, similarity: Pipeline) -> None:
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
    # Two of one length, and two of different ones, which get a forward pass each.
    chosen = [4, 12, 0, 2, 3]
    endpoint = Pipeline(ENDPOINTS["clip_text"], [text_encoder], Settings(max_batch=2, max_seconds=13))
    rows = [json_row({"input": TEXTS[i]}) for i in chosen]
    replies = endpoint.handle([*rows, Row(b"{", JSON), rows[0]])
    assert [reply.status for reply in replies] == [200, 200, 200, 200, 503, 400, 503]
    assert error_code(replies[4]) == (503, "overloaded")
    assert_close(np.concatenate([vectors(reply) for reply in replies[:4]]), text_vectors[chosen[:4]])
    # The next batch starts anew.
    assert [reply.status for reply in endpoint.handle(rows[:1])] == [200]


def test_encoders_of_two_spaces_are_refused(
    image_encoder: ExportedImageEncoder, text_encoder: ExportedTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = json.loads(text_encoder.spec.to_json()) | {"space_id": "of another pair"}
    monkeypatch.setattr(text_encoder, "spec", text_encoder.spec.from_json(json.dumps(other), "x"))
    with pytest.raises(SpecError, match="not of one embedding space"):
        Pipeline(ENDPOINTS["clip_similarity"], [image_encoder, text_encoder], Settings())
