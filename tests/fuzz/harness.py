"""Coverage-guided fuzzing: `python -m tests.fuzz.harness image|text|images|similarity CORPUS …`.

Whatever the bytes, a parser gives a result or a `RequestError` with a 4xx; any other exception is a finding,
which atheris (libFuzzer) writes to a file. What it finds becomes a case of test_regressions.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["clipserve", "PIL"]):
    from clipserve.errors import RequestError
    from clipserve.images import ImageLimits, decode_image, preprocess
    from clipserve.preprocessing import ImagePreprocessing
    from clipserve.wire.native import decode_images, decode_texts
    from clipserve.wire.rows import JSON, MULTIPART, Part, RequestLimits, Row
    from clipserve.wire.similarity import decode as decode_similarity

PREPROCESSING = ImagePreprocessing(32, 32, 32, "bicubic", (0.0,) * 3, (1.0,) * 3)
IMAGES = ImageLimits(max_memory=8_000_000)  # fuzzing is quick only with small pictures
REQUESTS = RequestLimits()


def check_image(data: bytes) -> None:
    """Bytes to pixels."""
    pixels = preprocess(decode_image(data, IMAGES), PREPROCESSING, IMAGES)
    assert pixels.shape == (3, 32, 32)


def _check_request(parse: Callable[[Row, RequestLimits], object], data: bytes) -> None:
    """The first byte chooses how the rest arrives."""
    how, body = data[:1], data[1:]
    if how == b"m":
        names = ("image", "texts", "labels", "template", "encoding_format", "texts")
        parts = [
            Part(name, content, "image/png" if name == "image" else None)
            for name, content in zip(names, body.split(b"\0", len(names) - 1), strict=False)
            if content
        ]
        parse(Row(b"", MULTIPART, parts), REQUESTS)
    elif how in b"tu":
        parse(Row(body, "text/plain" if how == b"t" else ""), REQUESTS)
    elif how == b"h":
        content_type, _, rest = body.partition(b"\n")
        parse(Row(rest, content_type.decode("latin-1")), REQUESTS)
    else:
        parse(Row(data, JSON), REQUESTS)


CHECKS: dict[str, Callable[[bytes], None]] = {
    "image": check_image,
    "text": lambda data: _check_request(decode_texts, data),
    "images": lambda data: _check_request(decode_images, data),
    "similarity": lambda data: _check_request(decode_similarity, data),
}


def check_error(error: RequestError) -> None:
    """A refusal as a caller may get it: a 4xx, and a message that is short and can be sent."""
    assert 400 <= error.status < 500, error
    assert len(error.message) < 400, error
    error.message.encode()


def main() -> None:
    """Fuzzes one parser; ends with a status other than 0 on a finding."""
    check = CHECKS[sys.argv.pop(1)]

    def test_one_input(data: bytes) -> None:
        try:
            check(data)
        except RequestError as error:
            check_error(error)

    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
