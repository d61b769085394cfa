"""The picture formats that are read, a file a format or a container: its row, and the walker over its files.

A format more is a file more here, and its line in docs/pictures.md. The server, its settings, the search's
file endings and its page, and the tests of memory, of cost and of damaged files go by this table.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules

from PIL import Image

from clipserve.errors import RequestError
from clipserve.image_formats.base import ImageFormat, Plugin

# What the files of this folder call FORMATS, by Pillow's name. They are found by `pkgutil`, which asks the
# importer: in an archive that is zipped as in one that is unpacked, and an archive's files are on a list.
FORMATS: dict[str, ImageFormat] = {
    format.name: format
    for module in iter_modules(__path__)
    if module.name != "base"
    for format in import_module(f"{__name__}.{module.name}").FORMATS
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
