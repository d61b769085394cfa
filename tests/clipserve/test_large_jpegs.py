"""Large pictures that people have, and JPEGs that are decoded at a reduced size."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from benchmarks.pictures import rings, stripes
from clipserve.errors import RequestError
from clipserve.images import decode_image, preprocess
from clipserve.settings import Settings
from tests.clipserve.pictures import (
    LIMITS,
    ORIENTATION,
    clip_preprocessing,
    encoded,
    ours,
    photograph,
    refused,
)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(1411, 1411), (3001, 2001), (1200, 2600)])
def test_reduced_decoding_hardly_changes_pixels(size: tuple[int, int], progressive: bool) -> None:
    source = photograph("retina.jpg").resize(size, Image.Resampling.BICUBIC)
    data = encoded(source, "JPEG", quality=90, progressive=progressive)
    preprocessing = clip_preprocessing(224)
    reduced = decode_image(data, LIMITS, shortest_edge=224, draft_factor=2)
    assert 2 * 224 <= min(reduced.size) < min(size)
    difference = preprocess(reduced, preprocessing, LIMITS) - ours(data, preprocessing).astype(np.float64)
    assert np.abs(difference).mean() < 1.0


def test_small_jpegs_and_other_formats_are_decoded_whole() -> None:
    source = photograph("retina.jpg")
    for data in (
        encoded(source, "PNG"),
        encoded(source.resize((894, 1000)), "JPEG"),
        # At half its size it would be resized to 224 x 483, not 484, and cropped a pixel beside.
        encoded(source.resize((1203, 2600)), "JPEG"),
    ):
        with Image.open(io.BytesIO(data)) as image:
            assert decode_image(data, LIMITS, shortest_edge=224, draft_factor=2).size == image.size


def test_reduced_decoding_keeps_the_orientation() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded(photograph("retina.jpg").resize((1600, 1200)), "JPEG", exif=exif)
    assert decode_image(data, LIMITS, shortest_edge=150, draft_factor=2).size == (300, 400)


def test_truncated_files_are_refused_at_a_reduced_size() -> None:
    data = encoded(photograph("retina.jpg"), "JPEG")
    with pytest.raises(RequestError, match="truncated"):
        decode_image(data[: len(data) // 2], LIMITS, shortest_edge=224, draft_factor=1)


@pytest.mark.parametrize(
    ("make", "mean", "most"),
    [
        (lambda side: photograph("coffee.png").resize((side, side)), 0.2, 2),
        (lambda side: photograph("page.png").convert("RGB").resize((side, side)), 0.2, 2),
        (lambda side: stripes(side, 10), 1.0, 5),
        (lambda side: rings(side), 1.0, 10),
    ],
    ids=["photograph", "page", "stripes", "rings"],
)
def test_reduced_decoding_at_the_factor_that_is_served(
    make: Callable[[int], Image.Image], mean: float, most: int
) -> None:
    """CASES 10: levels of 255, at the very size at which reducing begins."""
    factor = Settings().draft_factor
    data = encoded(make(2 * factor * 112), "JPEG", quality=90)
    preprocessing = clip_preprocessing(112)
    reduced = decode_image(data, LIMITS, shortest_edge=112, draft_factor=factor)
    assert reduced.size == (factor * 112, factor * 112)
    difference = preprocess(reduced, preprocessing, LIMITS) - ours(data, preprocessing).astype(np.float64)
    assert np.abs(difference).mean() < mean
    assert np.abs(difference).max() <= most


# ---- large pictures that people have


@pytest.mark.parametrize(
    ("megapixels", "size"),
    [(26, (6240, 4168)), (48, (8064, 6048)), (108, (12000, 9000)), (60, (24000, 2500))],
    ids=["26", "48", "108", "panorama"],
)
def test_large_jpegs(megapixels: int, size: tuple[int, int]) -> None:
    """CASES 20: what is decoded fits in memory, though the whole picture would not."""
    data = encoded(Image.new("RGB", size, "olive"), "JPEG", quality=30)
    for factor in (0, Settings().draft_factor):
        found = decode_image(data, LIMITS, shortest_edge=224, draft_factor=factor)
        assert found.width * found.height * 8 <= LIMITS.max_memory
        assert min(found.size) >= 224
    if megapixels == 26:
        # It fits, so that who asks for the whole gets it.
        assert decode_image(data, LIMITS, shortest_edge=224).size == size


def test_long_screenshot() -> None:
    """CASES 20."""
    data = encoded(Image.new("RGB", (1080, 26_000), "olive"), "PNG")
    assert decode_image(data, LIMITS, shortest_edge=224).size == (1080, 26_000)


def test_large_progressive_jpegs_are_limited_by_what_the_decoder_holds() -> None:
    """CASES 20: all coefficients of all passes, whatever size it makes of them."""
    data = encoded(Image.new("RGB", (12_000, 9_000)), "JPEG", progressive=True, quality=30)
    error = refused(data, shortest_edge=224)
    assert (error.code, error.status) == ("image_too_large", 413)
    assert "bytes of it the decoder's" in error.message
