"""Damaged input of every kind, the same for the same seed: pictures, and request bodies around them."""

from __future__ import annotations

import base64
import functools
import io
import json
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from clipserve.endpoints import ENDPOINTS
from clipserve.image_formats import FORMATS
from reliability.costly import COSTLY
from reliability.questions import JSON, picture, sentence

SIXTEENTHS = range(16)
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class BadRequest:
    """One request that is damaged, or may be.

    Attributes:
        kind: names the damage in a report.
        endpoint, body, content_type: what is sent.
    """

    kind: str
    endpoint: str
    body: bytes
    content_type: str


# ---------------------------------------------------------------------------------------------------
# Pictures


@functools.cache
def every_format() -> dict[str, bytes]:
    """One small picture in every format and mode that this Pillow writes."""
    Image.init()
    colours = Image.open(io.BytesIO(picture(7, (40, 30), "PNG")))
    colours.load()
    written = {}
    for format in sorted(Image.SAVE):
        for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F"):
            buffer = io.BytesIO()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    colours.convert("I" if mode == "I;16" else mode).convert(mode).save(buffer, format)
            except Exception:  # noqa: S112  # a format that does not write this mode, or needs a program
                continue
            if buffer.getvalue():
                written[f"{format} {mode}"] = buffer.getvalue()
    variants: dict[str, dict[str, Any]] = {
        "JPEG": {"progressive": True},
        "PNG": {"optimize": True},
        "WEBP": {"lossless": True},
        "GIF": {"save_all": True, "append_images": [colours.rotate(90), colours]},
    }
    for format, options in variants.items():
        buffer = io.BytesIO()
        colours.save(buffer, format, **options)
        written[f"{format} {next(iter(options))}"] = buffer.getvalue()
    return written


@functools.cache
def admitted() -> list[bytes]:
    """Pictures in the formats that the service reads: what damage is most telling on."""
    return [data for name, data in every_format().items() if name.split(" ")[0] in FORMATS]


def truncated(data: bytes, sixteenth: int) -> bytes:
    """The first `sixteenth` sixteenths of a file."""
    return data[: len(data) * sixteenth // 16]


def bits_flipped(data: bytes, choose: random.Random) -> bytes:
    """One to eight bits of a file turned, half of the time within its first hundred bytes."""
    changed = bytearray(data)
    for _ in range(choose.randint(1, 8)):
        limit = min(100, len(changed)) if choose.random() < 0.5 else len(changed)
        changed[choose.randrange(limit)] ^= 1 << choose.randrange(8)
    return bytes(changed)


def header_lies(choose: random.Random) -> bytes:
    """A file whose header names another size than its pixels have."""
    width, height = (choose.choice((0, 1, 7, 4999, 13_000, 65_535, 2**31 - 1)) for _ in range(2))
    format = choose.choice(("PNG", "GIF", "BMP", "JPEG"))
    data = bytearray(picture(7, (40, 30), format))
    if format == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif format == "GIF":
        data[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    elif format == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    else:
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    return bytes(data)


def plain_png(width: int, height: int) -> bytes:
    """A valid PNG of one grey: a thousandth of its pixels in bytes."""
    png = b"\x89PNG\r\n\x1a\n"
    pixels = zlib.compressobj(9)
    packed = b"".join(pixels.compress(b"\0" + b"\x80" * width) for _ in range(height)) + pixels.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    for chunk in (b"IHDR" + header, b"IDAT" + packed, b"IEND"):
        png += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png


def many_scans(scans: int) -> bytes:
    """A progressive JPEG of 25 million pixels whose last scan is repeated: minutes of work in a few bytes."""
    buffer = io.BytesIO()
    Image.new("L", (4_990, 4_990), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def plain(mode: str, size: tuple[int, int], format: str) -> bytes:
    """A valid picture of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format)
    return buffer.getvalue()


@functools.cache
def bombs() -> list[bytes]:
    """Small files of very many pixels: over our limit, over Pillow's, and what takes most memory within."""
    return [
        plain_png(13_000, 13_000),
        plain_png(20_000, 20_000),
        plain_png(2_000_000, 1),
        plain_png(4_990, 4_990),
        plain("RGBA", (4_990, 4_990), "PNG"),
        plain("RGB", (450, 55_500), "PNG"),
        plain("RGBA", (4_990, 4_990), "WEBP"),
        plain("RGBA", (3_530, 3_530), "WEBP"),
        plain("RGB", (3_740, 3_740), "AVIF"),
        plain("CMYK", (5_300, 5_300), "TIFF"),
        plain("RGB", (5_300, 5_300), "JPEG"),
        plain("RGB", (12_000, 9_000), "JPEG"),
        plain("RGB", (1_080, 26_000), "PNG"),
        plain("RGB", (4_990, 4_990), "GIF"),
        cut_short(),
    ]


@functools.cache
def cut_short() -> bytes:
    """A picture of 25 million pixels that is found to be damaged when they are decoded, but for the last."""
    return plain("RGB", (4_990, 4_990), "PNG")[:-100]


def damaged_picture(choose: random.Random) -> tuple[str, bytes]:
    """A damaged picture and the kind of damage."""
    kinds: list[tuple[str, int, Callable[[], bytes]]] = [
        ("any format", 3, lambda: choose.choice(list(every_format().values()))),
        ("truncated", 5, lambda: truncated(choose.choice(admitted()), choose.choice(SIXTEENTHS))),
        ("bits flipped", 8, lambda: bits_flipped(choose.choice(admitted()), choose)),
        ("header lies", 4, lambda: header_lies(choose)),
        ("two files in one", 1, lambda: truncated(choose.choice(admitted()), 8) + choose.choice(admitted())),
        ("noise", 2, lambda: choose.randbytes(choose.choice((0, 1, 3, 100, 10_000)))),
        ("noise behind a signature", 2, lambda: choose.choice(admitted())[:12] + choose.randbytes(500)),
    ]
    name, _, make = choose.choices(kinds, [weight for _, weight, _ in kinds])[0]
    return name, make()


# ---------------------------------------------------------------------------------------------------
# Requests


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


ODD_VALUES: tuple[object, ...] = (
    None, True, 0, -1, 1e308, "", " ", "\0", "\ud800", "a" * 20_001, [], {}, [[]], [None], {"image": 5},
    {"image": None}, {"url": "x"}, "http://127.0.0.1/x.png", "file:///etc/passwd", "data:image/png;base64,",
    "data:,x", "data:image/png;base64,!!!", "é" * 5_000, "\u202e" * 100, "🏳️‍🌈" * 500,
    "\N{COMBINING ACUTE ACCENT}" * 9_000,
)  # fmt: skip

ODD_JSON = (
    b"", b"{", b"[]", b"null", b"5", b'"text"', b"{}", b"{}{}", b'{"input":}', b"NaN", b'{"input": NaN}',
    b'{"input": Infinity}', b'{"input": 1e999}', b'{"input": ' + b"9" * 5_000 + b"}", b'{"input": "\\ud83d"}',
    b'{"input": "a", "input": "b"}', b'{"input": ["a"], "encoding_format": 5}', b'{"input": "\xff\xfe"}',
    b'{"input": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
    b"\xef\xbb\xbf{}", '{"input": "a"}'.encode("utf-16"), b"\0" * 100, b"input=a&b=c", b'{"input": "a\nb"}',
    b'{"images": [], "texts": []}', b'{"images": ["x"], "labels": ["a"], "template": "{}{}"}',
)  # fmt: skip


def bad_request(number: int, seed: int = 0) -> BadRequest:
    """The damaged request of this number."""
    choose = random.Random(f"{seed} {number}")
    kinds: list[tuple[int, Callable[[random.Random], BadRequest]]] = [
        (8, _raw_picture),
        (5, _list_with_damage),
        (3, _multipart),
        (4, _odd_values),
        (3, _odd_json),
        (4, _flipped_json),
        (3, _odd_text),
        (4, _similarity_with_damage),
    ]
    return choose.choices([make for _, make in kinds], [weight for weight, _ in kinds])[0](choose)


def _raw_picture(choose: random.Random) -> BadRequest:
    name, data = damaged_picture(choose)
    if choose.random() < 0.01:
        name, data = "bomb", choose.choice(bombs())
    elif choose.random() < 0.01:
        name, data = "costly", COSTLY[choose.choice(list(COSTLY))]()
    return BadRequest(f"picture: {name}", "clip_image", data, choose.choice(("image/png", "", "x/y; a=b")))


def _list_with_damage(choose: random.Random) -> BadRequest:
    # Several that are large and damaged: a server that keeps one while it decodes the next adds them up.
    several = [cut_short()] * 5 if choose.random() < 0.01 else []
    damaged = several or [damaged_picture(choose)[1] for _ in range(choose.randint(1, 4))]
    items = [_b64(data) for data in damaged]
    items.insert(choose.randint(0, len(items)), _b64(picture(choose.randrange(50), (40, 30))))
    return BadRequest("pictures in JSON", "clip_image", json.dumps({"input": items}).encode(), JSON)


def _multipart(choose: random.Random) -> BadRequest:
    parts = b""
    for number in range(choose.randint(0, 3)):
        disposition = f'form-data; name="{choose.choice(("a", "texts", "labels", ""))}{number}"; filename="f"'
        data = damaged_picture(choose)[1]
        parts += b"--edge\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + data + b"\r\n"
    parts += choose.choice((b"--edge--\r\n", b"--edge", b""))
    endpoint = choose.choice(("clip_image", "clip_similarity"))
    return BadRequest("multipart", endpoint, parts, "multipart/form-data; boundary=edge")


def _odd_values(choose: random.Random) -> BadRequest:
    endpoint = choose.choice(list(ENDPOINTS))
    value: object = choose.choice(ODD_VALUES)
    if choose.random() < 0.7:
        value = [value, sentence(choose.randrange(100)), choose.choice(ODD_VALUES)]
    asked = ENDPOINTS[endpoint]
    first, *others = asked.modalities
    body = asked.example({first: value} | {other: choose.choice(ODD_VALUES) for other in others})
    if "texts" in body and choose.random() < 0.5:
        body["labels"] = body.pop("texts")
    return BadRequest("odd values", endpoint, json.dumps(body).encode(), JSON)


def _odd_json(choose: random.Random) -> BadRequest:
    endpoint = choose.choice(list(ENDPOINTS))
    return BadRequest("odd JSON", endpoint, choose.choice(ODD_JSON), choose.choice((JSON, JSON, FORM)))


def _flipped_json(choose: random.Random) -> BadRequest:
    endpoint = choose.choice(list(ENDPOINTS))
    pictures, texts = [_b64(picture(3, (16, 12), "PNG"))], [sentence(choose.randrange(100)), "雪"]
    body = ENDPOINTS[endpoint].example({"image": pictures, "text": texts})
    raw = json.dumps(body, ensure_ascii=False).encode()
    if choose.random() < 0.3:
        raw = truncated(raw, choose.choice(SIXTEENTHS))
    return BadRequest("bits flipped in JSON", endpoint, bits_flipped(raw or b"{", choose), JSON)


def _odd_text(choose: random.Random) -> BadRequest:
    text = "".join(
        chr(choose.choice((choose.randrange(0x80), choose.randrange(0xD800), 0x1F600))) for _ in range(60)
    )
    body = choose.choice((text.encode(), choose.randbytes(200), b"", b"\0", (text * 400).encode()))
    return BadRequest(
        "odd text", "clip_text", body, choose.choice(("text/plain", "", "a/b", "text/plain;charset=x"))
    )


def _similarity_with_damage(choose: random.Random) -> BadRequest:
    images: list[object] = [_b64(damaged_picture(choose)[1]), _b64(picture(5, (30, 30)))]
    texts: list[object] = [sentence(1), choose.choice(ODD_VALUES), sentence(2)]
    choose.shuffle(images)
    choose.shuffle(texts)
    body = json.dumps({"images": images, "texts": texts}).encode()
    return BadRequest("similarity with damage", "clip_similarity", body, JSON)


def write_seeds(folder: Path) -> None:
    """Writes pictures and request bodies for a coverage-guided fuzzer to start from."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(every_format().values()):
        (folder / f"picture-{number}").write_bytes(data)
        for sixteenth in SIXTEENTHS:
            (folder / f"picture-{number}-{sixteenth}").write_bytes(truncated(data, sixteenth))
    for number in range(300):
        (folder / f"request-{number}").write_bytes(bad_request(number).body)
