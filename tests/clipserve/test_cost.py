"""What a request costs is known before it is paid, and bounded by what is left of its deadline.

Time is counted by a clock that moves where work is done, and nowhere else.
"""

from __future__ import annotations

import base64
import io
import json
import math
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from clipserve import embedders, worker
from clipserve.cost import Budget, PassCost
from clipserve.embedders import ENTRY_BYTES, CachedTextEmbedder, TextEmbedder
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import TOKENIZER_FILE, EncoderSpec, FloatArray, read_extra_file
from clipserve.endpoints import ENDPOINTS, Endpoint
from clipserve.errors import SpecError
from clipserve.images import PixelArray
from clipserve.memory import resident_bytes
from clipserve.pipeline import Pipeline
from clipserve.settings import Settings
from clipserve.store import Store
from clipserve.tokens import Tokenizer, Tokens
from clipserve.wire.messages import Embedded, Request
from clipserve.wire.rows import JSON, Reply, RequestLimits, Row
from clipserve.worker import Worker
from serving.server import private_server

CPU = torch.device("cpu")


@dataclass
class Clock:
    """Seconds that work has taken so far."""

    now: float = 0.0

    def slow(self, function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        """The function, taking so many seconds."""

        def slowed(*arguments: Any, **options: Any) -> Any:
            self.now += seconds
            return function(*arguments, **options)

        return slowed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("clipserve.cost.time.monotonic", lambda: clock.now)
    return clock


def picture(seed: int) -> bytes:
    colours = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize((60, 50), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [base64.b64encode(picture(seed)).decode() for seed in range(20)]
TEXTS = [f"{'red' if seed % 2 else 'blue'} boat {seed}" for seed in range(60)]


def json_row(value: Any) -> Row:
    return Row(json.dumps(value).encode(), JSON)


def outcomes(reply: Reply) -> list[str]:
    """`ok` or an error's code for each item; for a refused request its code alone."""
    body = json.loads(reply.body)
    if reply.status != 200:
        return [body["error"]["code"]]
    return [entry.get("error", {}).get("code", "ok") for entry in body["data"]]


def vectors(reply: Reply) -> FloatArray:
    data = json.loads(reply.body)["data"]
    return np.array([e["embedding"] for e in data if "embedding" in e], np.float32)


def told(reply: Reply, kind: str) -> list[int]:
    """Which items of a similarity request were `overloaded`."""
    errors = json.loads(reply.body)["errors"]
    assert {e["error"]["code"] for e in errors} <= {"overloaded"}
    return [e["error"]["index"] for e in errors if e["input"] == kind]


def decoding(name: str, change: Callable[[Row, Callable[[], Request]], Request]) -> Endpoint:
    """An endpoint that decodes its own bodies by `change`, which is given the row and what decodes it."""
    endpoint = ENDPOINTS[name]
    original = endpoint.decode

    def decode(row: Row, limits: RequestLimits, spec: EncoderSpec) -> Request:
        return change(row, lambda: original(row, limits, spec))

    return replace(endpoint, decode=decode)


# ---- within a request


def test_pictures_are_decoded_as_long_as_there_is_time(
    image_encoder: ExportedImageEncoder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ATTACKS A6: 128 pictures of a second each killed the worker. What is done is kept."""
    endpoint = Pipeline(ENDPOINTS["clip_image"], [image_encoder], Settings(max_batch=2))
    whole = vectors(endpoint.handle([json_row({"input": PICTURES})])[0])
    decoded: list[bytes] = []
    decode = clock.slow(embedders.decode_image, 3)

    def counted(data: bytes, *arguments: Any, **options: Any) -> Any:
        decoded.append(data)
        return decode(data, *arguments, **options)

    monkeypatch.setattr(embedders, "decode_image", counted)
    reply = endpoint.handle([json_row({"input": PICTURES})])[0]
    # At 0, 3 and 6 seconds of 8.
    assert outcomes(reply) == ["ok"] * 3 + ["overloaded"] * 17
    assert len(decoded) == 3
    np.testing.assert_allclose(vectors(reply), whole[:3], atol=1e-5)
    entry = json.loads(reply.body)["data"][3]
    assert (entry["index"], "ask again" in entry["error"]["message"]) == (3, True)


def test_pictures_are_decoded_as_long_as_there_is_time_to_embed_them(
    image_encoder: ExportedImageEncoder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ATTACKS A6, with an encoder that is slower than the decoder: 0.5 s a picture is 16 pictures in 8 s."""
    endpoint = Pipeline(ENDPOINTS["clip_image"], [image_encoder], Settings(max_batch=32))
    monkeypatch.setattr(PassCost, "seconds", lambda self, units: 0.5 * units)
    assert outcomes(endpoint.handle([json_row({"input": PICTURES})])[0]) == ["ok"] * 16 + ["overloaded"] * 4


def test_texts_are_embedded_as_long_as_their_known_cost_fits(
    text_encoder: ExportedTextEncoder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ATTACKS A8: what would take longer than the request may is not begun, and not even tokenised."""
    endpoint = Pipeline(ENDPOINTS["clip_text"], [text_encoder], Settings())
    whole = vectors(endpoint.handle([json_row({"input": TEXTS})])[0])
    monkeypatch.setattr(PassCost, "seconds", lambda self, units: 0.1 * units)
    tokenised: list[int] = []
    tokenize = text_encoder.tokenizer.tokenize

    def counted(text: str) -> Tokens:
        tokenised.append(len(tokenize(text).ids))
        return tokenize(text)

    monkeypatch.setattr(text_encoder.tokenizer, "tokenize", counted)
    reply = endpoint.handle([json_row({"input": TEXTS})])[0]
    done = outcomes(reply).count("ok")
    assert outcomes(reply) == ["ok"] * done + ["overloaded"] * (60 - done)
    # 80 tokens of a tenth of a second in 8 seconds; the one that did not fit was the last to be tokenised.
    assert len(tokenised) == done + 1
    assert sum(tokenised[:-1]) <= 80 < sum(tokenised)
    np.testing.assert_allclose(vectors(reply), whole[:done], atol=1e-5)


@pytest.fixture
def always_padded(
    text_path: Path, text_encoder: ExportedTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> ExportedTextEncoder:
    """An encoder whose spec says that every text is padded, whatever its graph could do with others."""
    assert text_encoder.spec.text is not None
    section = replace(text_encoder.spec.text, padding="context_length")
    tokenizer = Tokenizer(read_extra_file(text_path, TOKENIZER_FILE).decode(), section)
    monkeypatch.setattr(text_encoder, "tokenizer", tokenizer)
    monkeypatch.setattr(text_encoder, "preprocessing", section)
    return text_encoder


def test_a_text_that_is_always_padded_costs_the_context_length(
    always_padded: ExportedTextEncoder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 tokens fit into the 8 seconds: seven passes of 128, of whatever few tokens the texts have."""
    endpoint = Pipeline(ENDPOINTS["clip_text"], [always_padded], Settings())
    monkeypatch.setattr(PassCost, "seconds", lambda self, units: 0.008 * units)
    reply = endpoint.handle([json_row({"input": ["a"] * 60})])[0]
    assert outcomes(reply) == ["ok"] * 7 + ["overloaded"] * 53
    assert [of.seconds for of in endpoint.largest_requests()] == [pytest.approx(0.008 * 128 * 128)]


def test_texts_that_are_always_padded_go_together(
    always_padded: ExportedTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is saved by dividing them by their lengths."""
    shapes = []
    embed = always_padded.embed

    def spy(input_ids: Any, attention_mask: Any) -> FloatArray:
        shapes.append(input_ids.shape)
        return embed(input_ids, attention_mask)

    endpoint = Pipeline(ENDPOINTS["clip_text"], [always_padded], Settings())
    monkeypatch.setattr(always_padded, "embed", spy)
    endpoint.handle([json_row({"input": ["a", "one two three " * 90] * 5})])
    assert shapes == [(10, 128)]


def test_time_that_was_thought_to_be_needed_is_used_after_all(
    image_encoder: ExportedImageEncoder,
    text_encoder: ExportedTextEncoder,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ATTACKS A8: timed while other workers started as well, a pass seemed to cost 40 s, and costs 0.1 s."""
    monkeypatch.setattr("clipserve.cost.time.perf_counter", lambda: clock.now)
    for encoder, name, items in (
        (image_encoder, "clip_image", PICTURES),
        (text_encoder, "clip_text", TEXTS[:20]),
    ):
        with monkeypatch.context() as starting:
            starting.setattr(encoder, "embed", clock.slow(encoder.embed, 40))
            endpoint = Pipeline(ENDPOINTS[name], [encoder], Settings(max_batch=2))
        monkeypatch.setattr(encoder, "embed", clock.slow(encoder.embed, 0.1))
        assert outcomes(endpoint.handle([json_row({"input": items})])[0]) == ["ok"] * 20


def test_tokenising_looks_at_the_deadline(
    text_encoder: ExportedTextEncoder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ATTACKS A7: a thousand texts that take long to tokenise; those that were are embedded all the same."""
    endpoint = Pipeline(ENDPOINTS["clip_text"], [text_encoder], Settings(max_batch=128))
    monkeypatch.setattr(PassCost, "seconds", lambda self, units: 0.0)
    monkeypatch.setattr(text_encoder.tokenizer, "tokenize", clock.slow(text_encoder.tokenizer.tokenize, 1.5))
    reply = endpoint.handle([json_row({"input": TEXTS})])[0]
    assert outcomes(reply) == ["ok"] * 5 + ["overloaded"] * 55
    assert clock.now == 6 * 1.5


def test_the_deadline_is_looked_at_between_forward_passes(
    text_encoder: ExportedTextEncoder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ATTACKS A8: also where a pass takes longer than it should."""
    endpoint = Pipeline(ENDPOINTS["clip_text"], [text_encoder], Settings(max_batch=2))
    monkeypatch.setattr(text_encoder, "embed", clock.slow(text_encoder.embed, 3))
    reply = endpoint.handle([json_row({"input": ["a"] * 20})])[0]
    assert sorted(outcomes(reply)) == ["ok"] * 6 + ["overloaded"] * 14
    assert clock.now == 9


def test_the_first_item_is_done_however_long_it_takes(
    image_encoder: ExportedImageEncoder,
    text_encoder: ExportedTextEncoder,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ATTACKS A8: on a slow machine, whoever asks again for what was left out gets on."""
    endpoints = (
        Pipeline(ENDPOINTS["clip_image"], [image_encoder], Settings()),
        Pipeline(ENDPOINTS["clip_text"], [text_encoder], Settings()),
    )
    monkeypatch.setattr(PassCost, "seconds", lambda self, units: 100.0 * units)
    monkeypatch.setattr(image_encoder, "embed", clock.slow(image_encoder.embed, 100))
    monkeypatch.setattr(text_encoder, "embed", clock.slow(text_encoder.embed, 100))
    for endpoint, items in zip(endpoints, (PICTURES[:3], TEXTS[:3]), strict=True):
        reply = endpoint.handle([json_row({"input": items})])[0]
        assert outcomes(reply) == ["ok", "overloaded", "overloaded"]


def test_neither_side_of_a_comparison_takes_all_the_time(
    image_encoder: ExportedImageEncoder,
    text_encoder: ExportedTextEncoder,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ATTACKS A6, A7: pictures without texts, or texts without pictures, would be of no use."""
    endpoint = Pipeline(ENDPOINTS["clip_similarity"], [image_encoder, text_encoder], Settings())
    monkeypatch.setattr(embedders, "decode_image", clock.slow(embedders.decode_image, 1))
    monkeypatch.setattr(text_encoder.tokenizer, "tokenize", clock.slow(text_encoder.tokenizer.tokenize, 1))
    monkeypatch.setattr(PassCost, "seconds", lambda self, units: 0.0)
    few, many = (
        endpoint.handle([json_row({"images": PICTURES[:i], "texts": TEXTS[:t]})])[0]
        for i, t in ((2, 20), (20, 20))
    )
    assert (told(few, "images"), told(few, "texts")) == ([], list(range(5, 20)))
    # The cache knows five texts already.
    assert told(many, "images") == list(range(4, 20))
    assert len(told(many, "texts")) == 12
    few_texts = endpoint.handle([json_row({"images": PICTURES, "texts": TEXTS[30:32]})])[0]
    assert (told(few_texts, "images"), told(few_texts, "texts")) == (list(range(6, 20)), [])


def test_a_costly_list_of_both_ends_in_time_and_its_neighbour_is_answered(
    image_encoder: ExportedImageEncoder,
    text_encoder: ExportedTextEncoder,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ATTACKS A6, through OpenAI's door: by the same functions, in the same time."""
    endpoint = Pipeline(ENDPOINTS["v1"], [image_encoder, text_encoder], Settings(max_batch=2))
    monkeypatch.setattr(embedders, "decode_image", clock.slow(embedders.decode_image, 1))
    monkeypatch.setattr(PassCost, "seconds", lambda self, units: 0.0)
    costly = json_row({"input": [*({"image": picture} for picture in PICTURES), *TEXTS[:2]]})
    refused, answered = endpoint.handle([costly, json_row({"input": TEXTS[:1]})])
    assert (refused.status, outcomes(refused)) == (503, ["overloaded"])
    assert "time for 10 of 22 items" in json.loads(refused.body)["error"]["message"]
    assert (answered.status, outcomes(answered)) == (200, ["ok"])
    assert clock.now == Settings().max_request_seconds


def test_labels_that_were_left_out_are_answered_when_asked_again(
    image_encoder: ExportedImageEncoder,
    text_encoder: ExportedTextEncoder,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ATTACKS A8: the honest maximum succeeds after all, since what is done is remembered."""
    endpoint = Pipeline(ENDPOINTS["clip_similarity"], [image_encoder, text_encoder], Settings())
    monkeypatch.setattr(PassCost, "seconds", lambda self, units: 0.1 * units)
    row = json_row({"images": PICTURES[:1], "labels": TEXTS})
    left = [len(told(endpoint.handle([row])[0], "texts")) for _ in range(6)]
    assert 0 < left[0] < 60
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0


def test_items_that_take_long_and_are_wrong_are_no_reason_to_ask_again(
    image_encoder: ExportedImageEncoder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ATTACKS A6: pictures cut short; a 503 would have the client send all of them once more."""
    endpoint = Pipeline(ENDPOINTS["clip_image"], [image_encoder], Settings())
    monkeypatch.setattr(embedders, "decode_image", clock.slow(embedders.decode_image, 3))
    wrong = base64.b64encode(b"no picture").decode()
    reply = endpoint.handle([json_row({"input": [wrong] * 9})])[0]
    assert (reply.status, outcomes(reply)) == (415, ["unsupported_image_format"])
    assert clock.now == 9


# ---- between the requests of a batch


def test_a_costly_request_takes_nothing_from_its_neighbours(
    text_encoder: ExportedTextEncoder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ATTACKS A6, A8: what costs little goes first, wherever it stands."""
    endpoint = Pipeline(ENDPOINTS["clip_text"], [text_encoder], Settings(max_batch=4))
    monkeypatch.setattr(text_encoder, "embed", clock.slow(text_encoder.embed, 5))
    heavy, light = json_row({"input": ["a"] * 60}), json_row({"input": ["a", "b"]})
    replies = endpoint.handle([heavy, heavy, light, heavy, heavy, light])
    done = [outcomes(reply).count("ok") for reply in replies]
    # Both light ones share a pass (5 s), a heavy one gets 8 s each until 25 s are over.
    assert done == [8, 8, 2, 0, 0, 2]
    assert [reply.status for reply in replies] == [200, 200, 200, 503, 503, 200]


def test_requests_that_share_a_pass_get_on_alike(
    image_encoder: ExportedImageEncoder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ATTACKS A6: five pictures that take long, before two that do not, in one pass of 32."""
    endpoint = Pipeline(ENDPOINTS["clip_image"], [image_encoder], Settings())
    slow = {base64.b64decode(p) for p in PICTURES[:5]}
    decode = embedders.decode_image

    def decode_slowly(data: bytes, *arguments: Any, **options: Any) -> Any:
        clock.now += 3 if data in slow else 0
        return decode(data, *arguments, **options)

    monkeypatch.setattr(embedders, "decode_image", decode_slowly)
    replies = endpoint.handle([json_row({"input": PICTURES[:5]}), json_row({"input": PICTURES[10:15]})])
    assert [outcomes(reply).count("ok") for reply in replies] == [3, 2]


def test_rows_are_parsed_under_the_deadline_of_their_batch(
    text_encoder: ExportedTextEncoder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ATTACKS A3: bodies that take long to parse; the small ones of their neighbours go before them."""
    parsed: list[bytes] = []

    def slow(row: Row, decode: Callable[[], Request]) -> Request:
        parsed.append(row.body)
        clock.now += 10 if len(row.body) > 100 else 0
        return decode()

    endpoint = Pipeline(decoding("clip_text", slow), [text_encoder], Settings())
    heavy, light = Row(b"[" * 200, JSON), json_row({"input": "a"})
    replies = endpoint.handle([heavy, heavy, light, heavy, heavy])
    assert [outcomes(reply) for reply in replies] == [
        ["invalid_json"], ["invalid_json"], ["ok"], ["overloaded"], ["overloaded"],
    ]  # fmt: skip
    assert parsed == [light.body, heavy.body, heavy.body]


def test_a_row_that_cannot_even_be_parsed_fails_alone(
    text_encoder: ExportedTextEncoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ATTACKS A3: whatever parsing raises, memory used up included, the neighbours are answered."""

    def fail(row: Row, decode: Callable[[], Request]) -> Request:
        if b"secret" in row.body:
            raise MemoryError("secret")
        return decode()

    endpoint = Pipeline(decoding("clip_text", fail), [text_encoder], Settings())
    replies = endpoint.handle([json_row({"input": "a"}), json_row({"input": "secret"}), Row(b"b", "")])
    assert [reply.status for reply in replies] == [200, 500, 200]
    assert outcomes(replies[1]) == ["internal_error"]
    assert "MemoryError" in caplog.text
    assert "secret" not in caplog.text


# ---- the shared forward pass


def fail_at(encoder: Any, guilty: Callable[[Any], bool]) -> Callable[..., FloatArray]:
    """The encoder's `embed`, raising where an item of the pass is guilty."""
    embed = encoder.embed

    def failing(inputs: Sequence[Any], *rest: Any) -> FloatArray:
        if any(guilty(item) for item in inputs):
            raise IndexError("index out of range in self")
        found: FloatArray = embed(inputs, *rest)
        return found

    return failing


def test_an_input_that_makes_the_forward_pass_raise_fails_alone(
    text_encoder: ExportedTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES 3: one caller's word failed the whole batch, innocent 249 of 447 told 503."""
    endpoint = Pipeline(ENDPOINTS["clip_text"], [text_encoder], Settings())
    inputs = [TEXTS[10 * i : 10 * i + 10] for i in range(3)]
    inputs[1][3] = "snow"
    rows = [json_row({"input": texts}) for texts in inputs]
    whole = [vectors(reply) for reply in endpoint.handle(rows)]
    bad = text_encoder.tokenizer.tokenize("snow").ids
    monkeypatch.setattr(
        text_encoder, "embed", fail_at(text_encoder, lambda ids: tuple(ids[: len(bad)]) == bad)
    )
    replies = endpoint.handle(rows)
    assert [outcomes(reply) for reply in replies] == [
        ["ok"] * 10, ["ok"] * 3 + ["not_embeddable"] + ["ok"] * 6, ["ok"] * 10,
    ]  # fmt: skip
    for reply, expected in zip(replies, (whole[0], np.delete(whole[1], 3, 0), whole[2]), strict=True):
        np.testing.assert_allclose(vectors(reply), expected, atol=1e-5)
    alone = endpoint.handle([json_row({"input": "snow"})])[0]
    assert (alone.status, outcomes(alone)) == (422, ["not_embeddable"])


def test_a_picture_that_makes_the_forward_pass_raise_fails_alone(
    image_encoder: ExportedImageEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES 3, for the other encoder."""
    endpoint = Pipeline(ENDPOINTS["clip_image"], [image_encoder], Settings())
    rows = [json_row({"input": PICTURES[3 * i : 3 * i + 3]}) for i in range(3)]
    whole = [vectors(reply) for reply in endpoint.handle(rows)]
    seen: list[PixelArray] = []
    embed = image_encoder.embed

    def note(pixels: Sequence[PixelArray]) -> FloatArray:
        seen.extend(pixels)
        return embed(pixels)

    monkeypatch.setattr(image_encoder, "embed", note)
    endpoint.handle([json_row({"input": PICTURES[4]})])
    monkeypatch.setattr(image_encoder, "embed", embed)
    monkeypatch.setattr(
        image_encoder, "embed", fail_at(image_encoder, lambda pixels: np.array_equal(pixels, seen[0]))
    )
    replies = endpoint.handle(rows)
    assert [outcomes(reply) for reply in replies] == [
        ["ok"] * 3, ["ok", "not_embeddable", "ok"], ["ok"] * 3,
    ]  # fmt: skip
    np.testing.assert_allclose(vectors(replies[2]), whole[2], atol=1e-5)


def test_a_broken_encoder_is_no_fault_of_its_callers(
    text_encoder: ExportedTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES 3: a GPU that has failed fails at the golden input too; the server replaces the worker."""
    endpoint = Pipeline(ENDPOINTS["clip_text"], [text_encoder], Settings())
    monkeypatch.setattr(text_encoder, "embed", fail_at(text_encoder, lambda _: True))
    with pytest.raises(IndexError):
        endpoint.handle([json_row({"input": "a"})])


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_what_is_no_vector_is_no_answer(
    image_encoder: ExportedImageEncoder,
    text_encoder: ExportedTextEncoder,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
) -> None:
    """CASES 3: a NaN is no JSON, and failed the batch when it was written."""
    texts = Pipeline(ENDPOINTS["clip_text"], [text_encoder], Settings())
    similarity = Pipeline(ENDPOINTS["clip_similarity"], [image_encoder, text_encoder], Settings())
    embed = text_encoder.embed

    def overflow(input_ids: Any, attention_mask: Any) -> FloatArray:
        found = embed(input_ids, attention_mask).copy()
        found[attention_mask.sum(1) > 20] = value
        return found

    monkeypatch.setattr(text_encoder, "embed", overflow)
    long = "two dogs in the snow " * 9
    replies = texts.handle([json_row({"input": ["a", long]}), json_row({"input": "b"})])
    assert [outcomes(reply) for reply in replies] == [["ok", "not_embeddable"], ["ok"]]
    # In the place of a NaN, orjson would write null.
    assert not any(b"null" in reply.body for reply in replies)
    reply = similarity.handle([json_row({"images": PICTURES[:1], "texts": [long, "a"]})])[0]
    body = json.loads(reply.body)
    assert body["cosine_similarity"][0][0] is None
    assert body["probabilities"] == [[None, 1.0]]


def test_a_worker_refuses_a_tokenizer_that_its_encoder_does_not_fit(
    text_encoder: ExportedTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES 3: on a GPU an id beyond the embeddings ends the process; found before any caller comes."""
    TextEmbedder(text_encoder, Settings())
    beyond = text_encoder.tokenizer.largest_id + 1
    monkeypatch.setattr(text_encoder.tokenizer, "largest_id", beyond)
    with pytest.raises(SpecError, match=f"128 tokens of id {beyond}, .*resize the checkpoint's"):
        TextEmbedder(text_encoder, Settings())


# ---- memory


def test_the_text_cache_is_bounded_in_bytes(text_encoder: ExportedTextEncoder) -> None:
    """ATTACKS A7: texts were its keys, 155 MB for each such request, and stayed."""
    cache = CachedTextEmbedder(TextEmbedder(text_encoder, Settings()), 50 * (128 + ENTRY_BYTES))
    cache(["a"], Budget(math.inf))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        results = cache([f"{i} " + "\N{DOG FACE}" * 5_000 for i in range(100)], Budget(math.inf))
        assert all(isinstance(result, Embedded) for result in results)
        del results
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert cache.bytes == 50 * (128 + ENTRY_BYTES)
    # The labels were 2 MB.
    assert kept < 2 * cache.bytes


def test_a_worker_gives_back_what_a_batch_has_left_in_its_heap(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ATTACKS A3, A5, A7: memory comes back after the batch that took it, not 200 batches later."""
    resident, now, trimmed = [100_000_000], [0.0], list[float]()
    monkeypatch.setattr(worker, "resident_bytes", lambda: resident[0])
    monkeypatch.setattr(worker, "trim_memory", lambda: trimmed.append(now[0]))
    text = start(store)
    monkeypatch.setattr("clipserve.worker.time.monotonic", lambda: now[0])
    for now[0], resident[0] in ((1e9, 160_000_000), (2e9, 170_000_000), (2e9 + 0.5, 400_000_000)):
        text.handle([json_row({"input": "a"})])
    # Once when it is ready, of what packing has left; and not at every batch, where ordinary work needs more.
    assert trimmed == [0.0, 2e9]
    now[0] += 1
    text.handle([json_row({"input": "a"})])
    assert trimmed == [0.0, 2e9, now[0]]


def test_the_memory_of_this_process() -> None:
    # What other tests left may be freed in between: two readings of one moment, not of two.
    assert resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)


# ---- limits that contradict each other


def start(store: Path, settings: Settings | None = None, response_seconds: float = 60) -> Worker:
    return Worker("clip_text", Store.read(store), CPU, settings or Settings(), response_seconds)


def test_a_worker_says_which_limits_its_time_does_not_suffice_for(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ATTACKS A8: 1,000 texts of 128 tokens on a full-size text tower, by what it has measured."""
    start(store)
    assert "max_items" not in caplog.text
    monkeypatch.setattr(PassCost, "seconds", lambda self, units: 0.00209 * units)
    worker = Worker("clip_similarity", Store.read(store), CPU, Settings(), 60)
    assert "1000 texts of 128 tokens, which max_texts admits, take 268 s here" in caplog.text
    assert "max_request_seconds is 8: some 29 of them are answered" in caplog.text
    assert "pictures" not in caplog.text
    assert worker.handle([Row(b"{", JSON)])[0].status == 400


@pytest.mark.parametrize(
    ("response_seconds", "expected", "lowered"),
    [(60, (25, 8), []), (30, (15, 8), ["max_seconds"]), (10, (5, 5), ["max_seconds", "max_request_seconds"])],
)
def test_limits_that_the_response_timeout_contradicts_are_lowered(
    response_seconds: float, expected: tuple[int, int], lowered: list[str]
) -> None:
    """ATTACKS A8: a worker that keeps to its own deadline is not killed at the server's."""
    settings, said = Settings().within(response_seconds)
    assert (settings.max_seconds, settings.max_request_seconds) == expected
    assert [sentence.partition(" is lowered from ")[0] for sentence in said] == lowered
    assert all(sentence.endswith(f"is {response_seconds} s") for sentence in said)


def test_what_a_worker_warns_of_is_told_by_who_starts_it(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ATTACKS A8: `make serve` tells every warning that stands in the workers' log, once."""
    monkeypatch.setattr(PassCost, "seconds", lambda self, units: 0.00209 * units)
    Worker("clip_similarity", Store.read(store), CPU, Settings(), 10)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 3
    server = private_server(store, tmp_path)
    server.logs.mkdir()
    head = "2026-11-26T16:48:01,123 [INFO ] W-9000-clip_similarity_0.1.0-stdout MODEL_LOG - "
    lines = [*warned, "clip-text-cpu-fp32 ready, space 0f3c", *warned]
    (server.logs / "model_log.log").write_text("".join(f"{head}{line}\n" for line in lines))
    assert server.warnings() == warned


def test_a_worker_keeps_to_the_lowered_limits(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ATTACKS A8."""
    late = start(store, response_seconds=4)
    assert "clip_text: max_seconds is lowered from 25 to 2 s" in caplog.text
    clock = Clock()
    monkeypatch.setattr("clipserve.cost.time.monotonic", lambda: clock.now)
    monkeypatch.setattr(Tokenizer, "tokenize", clock.slow(Tokenizer.tokenize, 1))
    reply = late.handle([json_row({"input": TEXTS[:5]})])[0]
    assert outcomes(reply) == ["ok"] + ["overloaded"] * 4
