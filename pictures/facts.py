"""What a picture's file says of itself: its size, and by EXIF when, where and with what it was taken.

Read after the picture was admitted and decoded once, so that a decoder's header reading is bounded
(`clipserve.image_formats`). Of EXIF, Pillow reads values of no more bytes in all than the block has, and a
block of more than `MAX_EXIF_BYTES` is not looked at.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL import ExifTags, Image

from clipserve.image_formats import FORMATS, format_of
from clipserve.images import QUIET
from pictures.places import place_at

# An ordinary one has a thumbnail of up to 64 kB, and as much of the camera maker's own.
MAX_EXIF_BYTES = 262_144
MAX_CAMERA = 100  # characters

TURNED = frozenset({5, 6, 7, 8})  # orientations that exchange width and height

# Nullable, as columns must be that are added to rows: null in rows of versions that did not look.
COLUMNS = (
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("taken", pa.timestamp("s")),
    pa.field("camera", pa.string()),
    pa.field("latitude", pa.float64()),
    pa.field("longitude", pa.float64()),
    pa.field("place", pa.string()),
)


@dataclass(frozen=True)
class Facts:
    """What is known of a picture; None where its file does not say, or nobody looked.

    Attributes:
        width, height: pixels, upright; 0 where they cannot be told.
        taken: the camera's own clock, which has no time zone.
        camera: maker and model.
        latitude, longitude: degrees, north and east.
        place: a town near there, see `pictures.places`; empty where there is none.
    """

    width: int | None = None
    height: int | None = None
    taken: datetime.datetime | None = None
    camera: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    place: str | None = None

    @property
    def position(self) -> str:
        """Latitude and longitude to a metre, as maps take them; empty where they are not known."""
        return "" if self.latitude is None else f"{self.latitude:.5f}, {self.longitude:.5f}"


UNKNOWN = Facts()


def read_facts(data: bytes) -> Facts:
    """The facts of a picture that was decoded before, of its file's bytes; damaged EXIF says nothing."""
    try:
        with QUIET, Image.open(io.BytesIO(data), formats=(format_of(data, FORMATS).name,)) as image:
            width, height = image.size
            block = image.info.get("exif", b"")
            tags: Mapping[int, Any] = {}
            camera: Mapping[int, Any] = {}
            gps: Mapping[int, Any] = {}
            # A TIFF is itself what EXIF is made of: its own tags, and no others, are read by then.
            if len(block) <= MAX_EXIF_BYTES:
                tags = exif = image.getexif()
                if block:
                    camera = exif.get_ifd(ExifTags.IFD.Exif)
                    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
            if tags.get(ExifTags.Base.Orientation) in TURNED:
                width, height = height, width
            latitude, longitude = _position(gps)
            return Facts(
                width,
                height,
                _taken(camera, tags),
                _camera(tags),
                latitude,
                longitude,
                None if latitude is None or longitude is None else place_at(latitude, longitude),
            )
    except Exception:
        # Whatever damaged EXIF makes Pillow stumble over: the picture itself is whole.
        return Facts(0, 0)


def _taken(camera: Mapping[int, Any], tags: Mapping[int, Any]) -> datetime.datetime | None:
    values = (
        camera.get(ExifTags.Base.DateTimeOriginal),
        camera.get(ExifTags.Base.DateTimeDigitized),
        tags.get(ExifTags.Base.DateTime),
    )
    for value in filter(None, values):
        with contextlib.suppress(TypeError, ValueError):
            # "0000:00:00 00:00:00" is what a camera writes whose clock was never set.
            return datetime.datetime.strptime(value[:19], "%Y:%m:%d %H:%M:%S")
    return None


def _camera(tags: Mapping[int, Any]) -> str | None:
    make, model = (_line(tags.get(tag)) for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
    # "Canon" and "Canon EOS 5D", "NIKON CORPORATION" and "NIKON D90".
    if make and not model.lower().startswith(make.split()[0].lower()):
        model = f"{make} {model}"
    return model.strip()[:MAX_CAMERA] or None


def _line(value: object) -> str:
    text = value if isinstance(value, str) else ""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _position(gps: Mapping[int, Any]) -> tuple[float | None, float | None]:
    """Latitude and longitude; none where there are no two numbers, or both are 0, as without reception."""
    try:
        degrees = [sum(float(part) / 60**power for power, part in enumerate(gps[tag])) for tag in (2, 4)]
        if str(gps[1]).startswith("S"):
            degrees[0] = -degrees[0]
        if str(gps[3]).startswith("W"):
            degrees[1] = -degrees[1]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None, None
    latitude, longitude = degrees
    known = math.isfinite(latitude + longitude) and abs(latitude) <= 90 and abs(longitude) <= 180
    return (round(latitude, 6), round(longitude, 6)) if known and (latitude or longitude) else (None, None)
