"""Requests that cost far more than their bytes say, or as much as the limits admit."""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from clipserve.encoder_spec import Modality
from clipserve.endpoints import ENDPOINTS
from clipserve.wire.rows import RequestLimits
from reliability.corpus import FORM, cut_short, plain
from reliability.costly import COSTLY
from reliability.questions import JSON, picture, sentence

MULTIPART = "multipart/form-data; boundary=edge"
BYTES = 31_000_000  # of the largest, a little below `max_request_size`
LONG = "two dogs in the snow and a cat on the table " * 30  # beyond every context length


@dataclass(frozen=True)
class Attack:
    """One request.

    Attributes:
        name: says what it is made of.
        endpoint, content_type: where and as what it is sent.
        make: its body; made when it is sent, since all of them together are gigabytes.
    """

    name: str
    endpoint: str
    content_type: str
    make: Callable[[], bytes]


def _filled(head: str, unit: str, tail: str, size: int = BYTES) -> bytes:
    """JSON of a head, as many units as fit, and a tail."""
    count = (size - len(head) - len(tail)) // len(unit.encode())
    return (head + unit * count + tail).encode()


def _pictures(data: bytes, count: int = 128) -> bytes:
    """The same picture over and over, as far as a request may be large."""
    text = base64.b64encode(data).decode()
    return json.dumps({"input": [text] * min(count, BYTES // (len(text) + 4))}).encode()


def _texts(texts: list[str]) -> bytes:
    return json.dumps({"input": texts}).encode()


def _labels(texts: list[str], template: str | None = None) -> bytes:
    body: dict[str, object] = {"images": [_shown(1)], "labels": texts}
    return json.dumps(body if template is None else body | {"template": template}).encode()


def _shown(seed: int) -> str:
    return base64.b64encode(picture(seed, (40, 30), "PNG")).decode()


def _multipart(*parts: tuple[str, bytes]) -> bytes:
    return b"".join(
        b'--edge\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + data + b"\r\n"
        for name, data in (*parts, ("picture", picture(1, (40, 30), "PNG")))
    ) + (b"--edge--\r\n")


def _many_pictures() -> bytes:
    """More than a request may have, each of them good."""
    return _multipart(*[(f"a{number}", picture(1, (40, 30), "PNG")) for number in range(3_000)])


@functools.cache
def _animation() -> bytes:
    """A GIF of 200 frames, of which the first one counts."""
    buffer = io.BytesIO()
    frames = [Image.new("P", (500, 500), number % 251) for number in range(200)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], optimize=False)
    return buffer.getvalue()


def _largest(endpoint: str) -> bytes:
    """The honest maximum: as many items as are admitted, each as long as counts."""
    limits, asked = RequestLimits(), ENDPOINTS[endpoint]
    one: dict[Modality, Callable[[int], str]] = {
        "image": _shown,
        "text": lambda number: f"{number} {LONG}"[:490],
    }
    items = {
        of.modality: [one[of.modality](number) for number in range(getattr(limits, of.limit))]
        for of in asked.inputs
    }
    return json.dumps(asked.example(items)).encode()


ATTACKS: tuple[Attack, ...] = (
    # Parsing (A1 to A3).
    Attack("quotes never closed", "clip_text", JSON, lambda: b"[" * 33 + b'"' + b'\\"' * 75_000),
    Attack("quotes never closed, 31 MB", "clip_text", JSON, lambda: b"[" * 33 + b'"' + b'\\"' * 15_500_000),
    Attack("backslashes", "clip_similarity", JSON, lambda: b"{" * 33 + b'"' + b"\\" * BYTES),
    Attack(
        "lists 30 deep", "clip_text", JSON, lambda: _filled('{"input":[', "[" * 30 + "]" * 30 + ",", "0]}")
    ),
    Attack("objects", "clip_image", JSON, lambda: _filled('{"input":[', "{},", "{}]}")),
    Attack("numbers", "clip_text", JSON, lambda: _filled('{"input":[', "0,", "0]}")),
    Attack("one number", "clip_text", JSON, lambda: _filled('{"input":', "9", "}")),
    Attack("a fraction", "clip_text", JSON, lambda: _filled('{"input":0.', "9", "}")),
    Attack("empty texts", "clip_text", JSON, lambda: _filled('{"input":[', '"",', '""]}')),
    Attack("two keys", "clip_text", JSON, lambda: _filled("{", '"a":0,', '"b":0}')),
    Attack("brackets only", "clip_image", JSON, lambda: b"[" * BYTES),
    Attack("brackets in a text", "clip_text", JSON, lambda: _filled('{"input":"', "[{", '"}')),
    Attack("escapes", "clip_text", JSON, lambda: _filled('{"input":"', "\\u0041", '"}')),
    Attack("halves of surrogates", "clip_text", JSON, lambda: _filled('{"input":"', "\\ud83d", '"}')),
    Attack("spaces", "clip_text", JSON, lambda: _filled("", " ", '{"input":"a"}')),
    Attack("a long key", "clip_similarity", JSON, lambda: _filled('{"', "k", '":0}')),
    Attack(
        "a long encoding_format",
        "clip_text",
        JSON,
        lambda: _filled('{"input":"a","encoding_format":"', "f", '"}'),
    ),
    Attack("one long text", "clip_text", "text/plain", lambda: "雪".encode() * (BYTES // 3)),
    Attack("no UTF-8 in the end", "clip_text", "text/plain", lambda: b"a" * BYTES + b"\xff"),
    Attack("base64 of one wrong sign", "clip_image", JSON, lambda: _filled('{"input":["', "A", '?"]}')),
    Attack("a data: URI all header", "clip_image", JSON, lambda: _filled('{"input":["data:', ";", ',A"]}')),
    Attack(
        "labels in a part, lists",
        "clip_similarity",
        MULTIPART,
        lambda: _multipart(("labels", b"[[]," * 7_000_000)),
    ),
    Attack(
        "a long template", "clip_similarity", MULTIPART, lambda: _multipart(("template", b"{}" * 10_000_000))
    ),
    Attack("no form", "clip_image", FORM, lambda: b"a" * 1_000_000),
    # As many as the proxy lets in (A10).
    Attack("150,000 empty parts", "clip_image", MULTIPART, lambda: _multipart(*[("a", b"")] * 150_000)),
    Attack("3,000 pictures in parts", "clip_image", MULTIPART, _many_pictures),
    # Tokenising (A7) and the honest maximum (A8).
    Attack(
        "labels in a template of emoji",
        "clip_similarity",
        JSON,
        lambda: _labels([str(number) for number in range(1000)], "\N{DOG FACE}" * 19_000 + "{}"),
    ),
    Attack(
        "labels in a template of words",
        "clip_similarity",
        JSON,
        lambda: _labels([str(number) for number in range(1000)], "a b " * 4_900 + "{}"),
    ),
    Attack("texts of emoji", "clip_text", JSON, lambda: _texts(["\N{DOG FACE}" * 20_000] * 128)),
    # As many characters as are admitted together.
    Attack("25 texts of emoji", "clip_text", JSON, lambda: _texts(["\N{DOG FACE}" * 20_000] * 25)),
    Attack("25 texts of one word", "clip_text", JSON, lambda: _texts(["a" * 20_000] * 25)),
    Attack("25 texts of ideographs", "clip_text", JSON, lambda: _texts(["雪犬" * 10_000] * 25)),
    Attack("25 texts of accents", "clip_text", JSON, lambda: _texts(["a\u0301" * 10_000] * 25)),
    Attack(
        "1,000 labels in a template",
        "clip_similarity",
        JSON,
        lambda: _labels([str(number) for number in range(1000)], "\N{DOG FACE}" * 490 + "{}"),
    ),
    Attack(
        "texts of all lengths", "clip_text", JSON, lambda: _texts(["a dog " * (1 + n) for n in range(128)])
    ),
    Attack("the largest texts", "clip_text", JSON, lambda: _largest("clip_text")),
    Attack("the most pictures", "clip_image", JSON, lambda: _largest("clip_image")),
    Attack("the largest comparison", "clip_similarity", JSON, lambda: _largest("clip_similarity")),
    # Decoding (A6): many pictures, each within its limits.
    Attack(
        "pictures of grey and alpha",
        "clip_image",
        JSON,
        lambda: _pictures(plain("LA", (5_000, 5_000), "PNG")),
    ),
    Attack(
        "pictures with a palette", "clip_image", JSON, lambda: _pictures(plain("P", (5_000, 5_000), "GIF"))
    ),
    Attack("pictures cut short", "clip_image", JSON, lambda: _pictures(cut_short())),
    Attack("animations", "clip_image", JSON, lambda: _pictures(_animation())),
    Attack(
        "labels and slow pictures",
        "clip_similarity",
        JSON,
        lambda: json.dumps(
            {
                "images": [base64.b64encode(plain("LA", (5_000, 5_000), "PNG")).decode()] * 100,
                "texts": [sentence(number) for number in range(1000)],
            }
        ).encode(),
    ),
    # Headers and decoding (A4, A5): one picture each.
    *(Attack(name, "clip_image", "application/octet-stream", make) for name, make in COSTLY.items()),
)

# What TorchServe's own frontend suffers from (A9, A10), so that it is asked this behind the proxy only.
AT_THE_FRONTEND: tuple[Attack, ...] = (
    Attack("a form of 500,000 fields", "clip_text", FORM, lambda: b"a&" * 500_000),
    Attack("a form of 15 million fields", "clip_text", FORM, lambda: b"a&" * (BYTES // 2)),
    Attack("a form of fields without a name", "clip_image", FORM, lambda: b"&" * 1_000_000),
    Attack("450,000 parts", "clip_similarity", MULTIPART, lambda: _multipart(*[("a", b"")] * 450_000)),
)
