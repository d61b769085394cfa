"""Small pictures: as large as a gallery needs them."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from pictures.thumbnails import make_thumbnail, thumbnail_size


@pytest.mark.parametrize(
    ("size", "small"),
    [
        ((480, 320), (224, 149)),
        ((320, 480), (149, 224)),
        ((800, 240), (373, 112)),  # as high as its neighbours, or it would be a blur among them
        ((240, 800), (112, 373)),
        ((4000, 100), (448, 11)),
        ((100, 50), (100, 50)),
    ],
)
def test_sizes(size: tuple[int, int], small: tuple[int, int]) -> None:
    stream = io.BytesIO()
    Image.new("RGB", size, (90, 120, 40)).save(stream, "PNG")
    assert thumbnail_size(make_thumbnail(stream.getvalue())) == small
