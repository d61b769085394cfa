"""ATTACKS A4, A5, A6: what one picture may cost is bounded before a decoder sees it."""

from __future__ import annotations

import io
from typing import Any

import pytest

from clipserve.errors import RequestError
from clipserve.image_formats import FORMATS
from clipserve.image_formats.base import Container, Walker, walk_gif, walk_iso, walk_png, walk_tiff, walk_webp
from clipserve.image_formats.jpeg import walk_jpeg
from clipserve.images import ImageLimits, decode_image
from reliability.costly import COSTLY

LIMITS = ImageLimits()

# Files that are pictures, and whose cost is that of their pixels or within the limits.
DECODED = {
    "JPEG, header of 13,000 x 13,000",
    "JPEG, Exif of 5,000 tags",
    "PNG, texts that unpack to 62 MB",
    "PNG, Exif of 65,535 tags",
    "PNG, transparency of grey, 25 million pixels",
    "PNG, transparency of colour, 28 million pixels",
    "WebP, lossless, 12 million pixels",
    "BMP, 1.4 million pixels in runs",
    "TIFF, strips of a line",
    "TIFF, page that follows itself",
    "AVIF, more pixels than its boxes say",
    "profile with a program of 100,000 steps",
    "profile of 10 MB",
    "profile of a damaged table",
    "profile of noise",
}


class CountingFile(io.BytesIO):
    """Counts what a decoder that is written in Python asks of a file."""

    calls = 0

    def read(self, size: int | None = -1, /) -> bytes:
        type(self).calls += 1
        return super().read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        type(self).calls += 1
        return super().seek(offset, whence)


@pytest.mark.parametrize("name", COSTLY)
def test_costly_files_are_refused_or_cost_little(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "BytesIO", CountingFile)
    monkeypatch.setattr(CountingFile, "calls", 0)
    data = COSTLY[name]()
    assert len(data) <= LIMITS.max_bytes
    if "HEIC" in name:
        pytest.importorskip("pillow_heif")
    if name in DECODED:
        decode_image(data, LIMITS, shortest_edge=224, draft_factor=6)
    else:
        with pytest.raises(RequestError) as caught:
            decode_image(data, LIMITS, shortest_edge=224, draft_factor=6)
        assert 400 <= caught.value.status < 500
        assert len(caught.value.message) < 300
    # Four for each structure, or for each tag of one Exif directory, which holds no more than this.
    assert CountingFile.calls <= 4 * 65_536 + 100


def test_the_corpus_covers_every_format() -> None:
    assert len(COSTLY) >= 40
    for name, format in FORMATS.items():
        shown = {"HEIF": "HEIC", "WEBP": "WebP"}.get(name, name)
        # A header alone has nothing to repeat.
        has_structures = format.walk(b"", 1).called != Container().called
        assert any(shown in title for title in COSTLY) or not has_structures, name


@pytest.mark.parametrize("most", [10, 1000])
@pytest.mark.parametrize("name", [name for name in COSTLY if "header" not in name])
def test_walks_stop_at_the_limit(name: str, most: int) -> None:
    """However large the file, a walk takes as many steps as are allowed."""
    data = COSTLY[name]()
    format = next(format for format in FORMATS.values() if format.signature.match(data))
    steps = CountingBytes(data)
    format.walk(steps, most)
    assert steps.steps <= 12 * most + 1000


class CountingBytes(bytes):
    """Counts the pieces that are taken out of it one by one."""

    steps = 0

    def __getitem__(self, place: Any) -> Any:
        self.steps += 1
        return super().__getitem__(place)


@pytest.mark.parametrize(
    ("walk", "called"),
    [
        (walk_png, "chunks"),
        (walk_webp, "chunks"),
        (walk_gif, "blocks"),
        (walk_tiff, "tags"),
        (walk_iso, "boxes"),
    ],
)
def test_nothing_to_walk_over(walk: Walker, called: str) -> None:
    for data in (b"", b"\0" * 7, b"II*\0", b"\0\0\0\0"):
        assert called in walk(data, 10).called


def test_message_names_what_and_how_many() -> None:
    with pytest.raises(RequestError) as caught:
        decode_image(COSTLY["PNG, empty private chunks"](), LIMITS)
    assert (caught.value.code, caught.value.status) == ("image_too_large", 413)
    assert "chunks, allowed are 20000" in caught.value.message


def test_structures_of_a_jpeg_end_at_its_end_marker() -> None:
    """A photograph with a film behind it: what follows is not read."""
    data = COSTLY["JPEG, Exif of 5,000 tags"]() + b"\xff\xfe\0\2" * 100_000
    found: Container = walk_jpeg(data, 100)
    assert found.structures < 20
    assert found.ended


def test_frame_that_is_larger_than_its_box_says() -> None:
    """The AV1 stream's own size is what a decoder makes, before it is scaled to the box's."""
    found = walk_iso(COSTLY["AVIF, more pixels than its boxes say"](), 1000)
    assert (found.width, found.height) == (4000, 2000)
    with pytest.raises(RequestError, match="4000 x 2000 pixels"):
        decode_image(
            COSTLY["AVIF, more pixels than its boxes say"](), ImageLimits(max_memory=16 * 4000 * 2000 - 1)
        )
