from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image

from clipserve.cost import Budget
from clipserve.encoder_spec import FloatArray
from clipserve.wire.rows import JSON, Reply, Row

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
