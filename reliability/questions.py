"""Requests whose right answers are known, so that a wrong vector is noticed whatever else goes on."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipserve.client import Client, Management
from clipserve.encoder_spec import decode_vector
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import ServerError

Answer = npt.NDArray[np.float64]

# How far a vector may move when its batch changes: additions in another order, rounding in half precision.
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 5e-3}

JSON = "application/json"
WORDS = "two dogs in the snow a cat on table picture London night red boat 雪 犬 kutya كلب".split(" ")  # noqa: SIM905


@dataclass(frozen=True)
class Question:
    """One good request.

    Attributes:
        endpoint: which one is asked.
        body, content_type: what is sent.
        answer: what must come back, `[N, D]` embeddings or `[I, T]` cosines.
        tolerance: largest absolute difference that is no error.
    """

    endpoint: str
    body: bytes
    content_type: str
    answer: Answer
    tolerance: float

    def holds(self, content: bytes) -> bool:
        """Whether a 200's body is the right answer."""
        try:
            found = read_answer(content)
        except (ValueError, KeyError, TypeError):
            return False
        return found.shape == self.answer.shape and bool(
            np.all(np.abs(found - self.answer) <= self.tolerance)
        )


def read_answer(content: bytes) -> Answer:
    """The numbers in a response's body.

    Raises:
        ValueError, KeyError, TypeError: it holds an error, or is no response of ours.
    """
    body = json.loads(content)
    if "cosine_similarity" in body:
        return np.asarray(body["cosine_similarity"], np.float64)
    vectors = [item["embedding"] for item in body["data"]]
    return np.stack(
        [decode_vector(v) if isinstance(v, str) else np.asarray(v, np.float32) for v in vectors]
    ).astype(np.float64)


def picture(seed: int, size: tuple[int, int] = (160, 120), format: str = "JPEG") -> bytes:
    """An encoded picture of smooth colours; another seed looks different to an encoder."""
    colours = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(buffer, format)
    return buffer.getvalue()


def sentence(seed: int) -> str:
    """A sentence of three to eighteen words."""
    random = np.random.default_rng(seed)
    return " ".join(random.choice(WORDS, size=int(random.integers(3, 19)))) + f" {seed}"


def learn_questions(client: Client, endpoints: Sequence[str], count: int = 6) -> list[Question]:
    """Asks a quiet server `count` different questions of each endpoint, one at a time.

    `Management.check_ready` has proven it on its golden inputs before; these are more, and in more shapes.

    Raises:
        ServerError: two different questions have so close an answer that a mix-up would go unseen.
    """
    questions = []
    for endpoint in endpoints:
        tolerance = max(TOLERANCE[spec.precision] for spec in Management(client).specs(endpoint))
        learned = []
        for seed in range(count):
            body, content_type = _request(endpoint, seed)
            response = client.post(endpoint, body, content_type)
            learned.append(Question(endpoint, body, content_type, read_answer(response.content), tolerance))
        _check_distinct(learned)
        questions += learned
    return questions


def _request(endpoint: str, seed: int) -> tuple[bytes, str]:
    """Different shapes in turn, so that a batch mixes them."""
    several = 1 + seed % 3
    pictures = [base64.b64encode(picture(10 * seed + i)).decode() for i in range(several)]
    texts = [sentence(10 * seed + i) for i in range(several)]
    asked = ENDPOINTS[endpoint]
    if asked.gives_embeddings and asked.modalities == ("image",) and seed % 2:
        return picture(10 * seed), "image/jpeg"
    if not asked.gives_embeddings:
        texts.append("a common text")
    body = asked.example({"image": pictures, "text": texts})
    if asked.gives_embeddings:
        body["encoding_format"] = "float" if asked.modalities == ("text",) and not seed % 2 else "base64"
    return json.dumps(body).encode(), JSON


def _check_distinct(questions: Sequence[Question]) -> None:
    for i, one in enumerate(questions):
        for other in questions[:i]:
            if one.answer.shape != other.answer.shape:
                continue
            distance = float(np.abs(one.answer - other.answer).max())
            if distance <= 2 * one.tolerance:
                raise ServerError(
                    f"{one.endpoint}: two different requests have answers only {distance:.1e} apart; "
                    f"wrong answers could not be told within {one.tolerance:g}"
                )
