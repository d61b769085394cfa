"""What fuzzing, chaos and measurement found, each once more; and the corpus itself."""

from __future__ import annotations

import contextlib
import io

import pytest
from PIL import Image

from clipserve.errors import RequestError
from clipserve.images import ImageLimits, decode_image, preprocess
from clipserve.preprocessing import ImagePreprocessing
from reliability import corpus

PREPROCESSING = ImagePreprocessing(32, 32, 32, "bicubic", (0.0,) * 3, (1.0,) * 3)
LIMITS = ImageLimits()


def test_the_corpus_is_the_same_every_time() -> None:
    for number in range(200):
        assert corpus.bad_request(number, 5) == corpus.bad_request(number, 5)
    assert len({corpus.bad_request(number).kind for number in range(2000)}) >= 12


def test_the_corpus_holds_every_format_that_pillow_writes() -> None:
    formats = {name.split(" ")[0] for name in corpus.every_format()}
    assert {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "JPEG2000"} <= formats
    assert len(formats) >= 20


@pytest.mark.parametrize("name", corpus.every_format())
def test_every_format_at_every_sixteenth(name: str) -> None:
    data = corpus.every_format()[name]
    for sixteenth in range(17):
        with contextlib.suppress(RequestError):  # anything else is a finding
            pixels = preprocess(
                decode_image(corpus.truncated(data, sixteenth), LIMITS), PREPROCESSING, LIMITS
            )
            assert pixels.shape == (3, 32, 32)


def test_very_many_scans_are_refused_before_they_are_decoded() -> None:
    """1,000 empty scans are 38 kB more and took 17 s; five times as many would outlast `responseTimeout`."""
    with pytest.raises(RequestError, match="scans, allowed are 64") as caught:
        decode_image(corpus.many_scans(1000), LIMITS)
    assert (caught.value.code, caught.value.status) == ("image_too_large", 413)


def test_ordinary_progressive_pictures_have_few_scans() -> None:
    buffer = io.BytesIO()
    Image.new("CMYK", (90, 70)).save(buffer, "JPEG", progressive=True, subsampling=0)
    assert decode_image(buffer.getvalue(), LIMITS).size == (90, 70)


@pytest.mark.parametrize(("mode", "background"), [("RGBA", (0, 0, 0, 0)), ("LA", (9, 0)), ("P", 0)])
def test_transparency_is_laid_over_white_tile_by_tile(mode: str, background: object) -> None:
    """As a whole it took 400 MB at 25 million pixels; the seams of tiles must not show."""
    image = Image.new(mode, (1500, 1100), background)
    image.paste(Image.new(mode, (700, 400), (200, 10, 90, 128) if mode == "RGBA" else None), (800, 700))
    options = {"transparency": 0} if mode == "P" else {}
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    with Image.open(buffer) as opened:
        whole = opened.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", whole.size, (255,) * 4), whole).convert("RGB")
    assert decode_image(buffer.getvalue(), LIMITS).tobytes() == expected.tobytes()
