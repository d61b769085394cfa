"""The one table of picture formats: what is read, how it is recognised, and what decoding it takes.

A format more is a row more, and its line in docs/pictures.md. The server, its settings, the search's file
endings and its page, and the tests of memory and of damaged files go by this table.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from PIL import AvifImagePlugin, Image

from clipserve.errors import RequestError
from clipserve.image_formats.base import Walker, walk_bmp, walk_gif, walk_iso, walk_png, walk_tiff, walk_webp
from clipserve.image_formats.jpeg import walk_jpeg

# Bytes of a pixel in Pillow's memory; 4 in all other modes, RGB among them.
PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
RGB_BYTES = 4

# One thread decodes a picture, as with every other format: workers are as many as there are cores.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


@dataclass(frozen=True)
class Plugin:
    """A decoder that is no part of Pillow.

    Attributes:
        module: that has it.
        extra: of this package, which brings it, as does `make EXTRA`.
        register: makes it known to Pillow; raises ImportError where it is missing.
    """

    module: str
    extra: str
    register: Callable[[], None]

    @property
    def is_missing(self) -> bool:
        """Whether it would have to be installed first."""
        return importlib.util.find_spec(self.module) is None


@dataclass(frozen=True)
class ImageFormat:
    """A format that is read.

    Attributes:
        name: Pillow's.
        endings: of files, in lower case.
        signature: what its files begin with.
        walk: reads the container before the decoder does.
        shown_as: the media type under which browsers show it; empty where they do not.
        decoder_bytes: of a pixel, that the decoder holds beside the picture that it makes, at most
            (measured); more than 0 where it takes them before it says how large the picture is, so that
            pictures are decoded one at a time. What a file's header tells of it is the walker's to say.
        scales: by which the decoder can reduce a picture, in a fraction of the time and memory, the largest
            first.
        plugin: the decoder, where Pillow itself has none.
    """

    name: str
    endings: tuple[str, ...]
    signature: re.Pattern[bytes]
    walk: Walker
    shown_as: str = ""
    decoder_bytes: int = 0
    scales: tuple[int, ...] = ()
    plugin: Plugin | None = None

    def decoding_bytes(self, size: tuple[int, int], mode: str, decoder_bytes: int = 0) -> int:
        """What decoding a picture takes at its peak.

        Args:
            size: width and height that the decoder makes, pixels.
            mode: Pillow's, of what it makes.
            decoder_bytes: in all, that the decoder holds for this very file.

        Returns:
            The most of: picture and decoder; the picture twice, when it is turned; the picture and its RGB
            form.
        """
        pixel = PIXEL_BYTES.get(mode, RGB_BYTES)
        pixels = size[0] * size[1]
        return max(
            pixels * (pixel + self.decoder_bytes) + decoder_bytes,
            pixels * 2 * pixel,
            pixels * (pixel + RGB_BYTES),
        )


def _register_heif() -> None:
    import pillow_heif  # an extra, and a second to import

    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


FORMATS: dict[str, ImageFormat] = {
    format.name: format
    for format in (
        ImageFormat(
            "JPEG",
            (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
            re.compile(rb"\xff\xd8\xff"),
            walk_jpeg,
            "image/jpeg",
            scales=(8, 4, 2),
        ),
        ImageFormat("PNG", (".png", ".apng"), re.compile(rb"\x89PNG\r\n\x1a\n"), walk_png, "image/png"),
        ImageFormat("WEBP", (".webp",), re.compile(rb"(?s)RIFF....WEBP"), walk_webp, "image/webp", 14),
        ImageFormat("GIF", (".gif",), re.compile(rb"GIF8[79]a"), walk_gif, "image/gif"),
        ImageFormat("BMP", (".bmp",), re.compile(rb"BM"), walk_bmp, "image/bmp"),
        ImageFormat("TIFF", (".tif", ".tiff"), re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), walk_tiff),
        ImageFormat(
            "AVIF",
            (".avif",),
            re.compile(rb"(?s)....ftyp(?:avi[fs]|(?:mif1|msf1)(?=.{0,64}avi[fs]))"),
            walk_iso,
            "image/avif",
            12,
        ),
        ImageFormat(
            "HEIF",
            (".heic", ".heif", ".hif"),
            re.compile(rb"(?s)....ftyp(?:he[iv][cmsx]|(?:mif1|msf1)(?=.{0,64}he[iv][cmsx]))"),
            walk_iso,
            decoder_bytes=12,
            plugin=Plugin("pillow_heif", "heic", _register_heif),
        ),
    )
}


def format_of(data: bytes, names: Iterable[str]) -> ImageFormat:
    """The format whose signature a file begins with; its decoder is known to Pillow.

    Args:
        data: the file.
        names: of the formats that are admitted; all others are never tried.

    Raises:
        RequestError: `unsupported_image_format` (415), none of these, or its decoder is not installed.
    """
    for name in names:
        format = FORMATS[name]
        if format.signature.match(data):
            if format.plugin is not None:
                _register(format, format.plugin)
            return format
    raise unsupported(names)


def unsupported(names: Iterable[str]) -> RequestError:
    """The refusal of what is in none of these formats; says which of them have to be installed first."""
    allowed = ", ".join(
        f"{name} after 'make {plugin.extra}'"
        if (plugin := FORMATS[name].plugin) is not None and plugin.is_missing
        else name
        for name in names
    )
    return RequestError(
        "unsupported_image_format", f"the bytes are no picture in an allowed format ({allowed})", 415
    )


def _register(format: ImageFormat, plugin: Plugin) -> None:
    if format.name in Image.OPEN:
        return
    try:
        plugin.register()
    except ImportError as error:
        raise RequestError(
            "unsupported_image_format",
            f"the image is a {plugin.extra.upper()} picture, which cannot be decoded here: the package "
            f"{plugin.module} is missing; run 'make {plugin.extra}' (pip: clipserve[{plugin.extra}]), "
            "or send a JPEG",
            415,
        ) from error
