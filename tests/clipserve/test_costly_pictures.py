"""ATTACKS A4, A5, A6: what one picture may cost is bounded before a decoder sees it."""

from __future__ import annotations

import contextlib
import io
import itertools
from typing import Any, ClassVar

import pytest
from PIL import Image, ImageCms

from clipserve.errors import RequestError
from clipserve.image_formats import FORMATS
from clipserve.image_formats.base import ImageFormat
from clipserve.images import ImageLimits, decode_image
from reliability.costly import COSTLY
from reliability.costly.any_format import SHOWN

LIMITS = ImageLimits()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

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


# Four for each structure, or for each tag of one Exif directory, which holds no more than this.
MOST_CALLS = 4 * 65_536 + 100


class CountingFile(io.BytesIO):
    """Counts what a decoder that is written in Python asks of a file, and where."""

    calls = 0
    places: ClassVar[set[int]] = set()

    def read(self, size: int | None = -1, /) -> bytes:
        type(self).calls += 1
        self.places.add(self.tell())
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
    assert CountingFile.calls <= MOST_CALLS


def test_the_corpus_covers_every_format() -> None:
    assert len(COSTLY) >= 40
    titles = {title.partition(",")[0] for title in COSTLY}
    assert {SHOWN.get(name, name) for name in FORMATS} <= titles


WRITTEN = pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.plugin is None])


@WRITTEN
def test_pixels_that_are_decoded_in_python_are_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No two alike, so that a decoder of runs reads each; what would cost too much is refused."""
    noise = Image.effect_noise((700, 700), 90).convert("RGB")
    stream = io.BytesIO()
    noise.save(stream, name)
    monkeypatch.setattr(io, "BytesIO", CountingFile)
    monkeypatch.setattr(CountingFile, "calls", 0)
    with contextlib.suppress(RequestError):
        decode_image(stream.getvalue(), LIMITS)
    assert CountingFile.calls <= MOST_CALLS


# Of a file in which one piece stands `REPEATS` times, as a walk may find `FEW` structures.
REPEATS, FEW = 2_000, 50


@WRITTEN
def test_what_a_decoder_reads_one_by_one_is_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two places that it reads at lies what a file may have a thousand times."""
    stream, said = io.BytesIO(), Image.Exif()
    said[0x010E] = "a picture"
    Image.new("RGB", (8, 6), "grey").save(stream, name, exif=said, icc_profile=SRGB, comment=b"said")
    data, limits = stream.getvalue(), ImageLimits(max_structures=FEW)
    monkeypatch.setattr(io, "BytesIO", CountingFile)
    monkeypatch.setattr(CountingFile, "places", set())
    decode_image(data, limits)
    places = sorted(CountingFile.places)[:40]
    assert len(places) >= 2
    for start, end in itertools.combinations([*places, len(data)], 2):
        monkeypatch.setattr(CountingFile, "calls", 0)
        with contextlib.suppress(RequestError):
            decode_image(data[:start] + data[start:end] * REPEATS + data[end:], limits)
        assert CountingFile.calls < REPEATS / 2, (start, end)


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


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("data", [b"", bytes(7), b"II*\0", bytes(4)])
def test_nothing_to_walk_over(format: ImageFormat, data: bytes) -> None:
    found = format.walk(data, 10)
    assert (found.width, found.height, found.refused) == (0, 0, "")
    assert found.structures <= 10


def test_message_names_what_and_how_many() -> None:
    with pytest.raises(RequestError) as caught:
        decode_image(COSTLY["PNG, empty private chunks"](), LIMITS)
    assert (caught.value.code, caught.value.status) == ("image_too_large", 413)
    assert "chunks, allowed are 20000" in caught.value.message


def test_structures_of_a_jpeg_end_at_its_end_marker() -> None:
    """A photograph with a film behind it: what follows is not read."""
    data = COSTLY["JPEG, Exif of 5,000 tags"]() + b"\xff\xfe\0\2" * 100_000
    found = FORMATS["JPEG"].walk(data, 100)
    assert found.structures < 20
    assert found.ended


def test_frame_that_is_larger_than_its_box_says() -> None:
    """The AV1 stream's own size is what a decoder makes, before it is scaled to the box's."""
    found = FORMATS["AVIF"].walk(COSTLY["AVIF, more pixels than its boxes say"](), 1000)
    assert (found.width, found.height) == (4000, 2000)
    with pytest.raises(RequestError, match="4000 x 2000 pixels"):
        decode_image(
            COSTLY["AVIF, more pixels than its boxes say"](), ImageLimits(max_memory=16 * 4000 * 2000 - 1)
        )
