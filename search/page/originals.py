"""The picture itself: served only where it is a row of the table, and still is what was indexed there."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass, replace

from PIL import Image

from clipserve.errors import RequestError
from clipserve.image_formats import FORMATS
from clipserve.images import ImageLimits, decode_image
from pictures.files import FoundFile, read_contents
from pictures.paths import printable, text_to_path
from pictures.table import PictureTable
from search.errors import SearchError

# Of what a picture is sent as whose format browsers do not show: quality, and pixels of the longer side.
JPEG_QUALITY = 92
SHOWN_EDGE = 2560


class NotServedError(SearchError):
    """A path whose picture is not served; its text says why."""


@dataclass(frozen=True)
class Original:
    """A picture of a row.

    Attributes:
        path: in text form, see `pictures.paths`.
        data: the file's bytes, or what was made of them.
        media_type: under which browsers show these; None where they do not.
        sha256: of the file's bytes.
    """

    path: str
    data: bytes
    media_type: str | None
    sha256: str


def find_original(table: PictureTable, path: str) -> tuple[FoundFile, str]:
    """The file of a row as it is now, and the SHA-256 that it was indexed with.

    Rows hold real paths of files below the indexed folder. One that leads elsewhere by now, because a link
    took the place of a folder or of the file, is refused.

    Raises:
        NotServedError: the path is no row, its file is gone, or it leads elsewhere.
    """
    state = table.state(path)
    if state is None:
        raise NotServedError(f"{printable(path)}: not in the table")
    location = text_to_path(path)
    try:
        status = os.lstat(location)
        moved = os.path.realpath(location) != location
    except OSError as error:
        raise NotServedError(
            f"{printable(path)}: cannot be read any more ({error.strerror}); 'make index' brings the table "
            "up to date"
        ) from error
    if moved or not stat.S_ISREG(status.st_mode):
        raise NotServedError(f"{printable(path)}: a link has taken its place since it was indexed")
    return FoundFile(path, location, status.st_size, status.st_mtime_ns), state.sha256


def read_original(table: PictureTable, path: str) -> Original:
    """The picture of a row, as its file is now.

    Raises:
        NotServedError: see `find_original`; or it cannot be read.
    """
    found, _ = find_original(table, path)
    try:
        contents = read_contents(found)
    except OSError as error:
        raise NotServedError(f"{printable(path)}: cannot be read: {error.strerror or error}") from error
    return Original(path, contents.data, _shown_as(contents.data), contents.sha256)


def converted(original: Original, limits: ImageLimits) -> Original:
    """As a JPEG of `SHOWN_EDGE` at most: a picture that browsers do not show, such as HEIC and TIFF.

    Raises:
        NotServedError: the file holds no picture any more, or none that can be decoded here.
    """
    try:
        image = decode_image(original.data, limits)
    except RequestError as error:
        raise NotServedError(f"{printable(original.path)}: cannot be shown: {error.message}") from error
    image.thumbnail((SHOWN_EDGE, SHOWN_EDGE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=JPEG_QUALITY)
    return replace(original, data=stream.getvalue(), media_type="image/jpeg")


def _shown_as(data: bytes) -> str | None:
    """The media type of a picture that browsers show; None for others, and where its header is damaged."""
    for format in FORMATS.values():
        if format.shown_as and format.signature.match(data):
            try:
                # Only the header is read.
                with Image.open(io.BytesIO(data), formats=(format.name,)):
                    return format.shown_as
            except Exception:  # whatever a damaged header makes Pillow stumble over
                return None
    return None
