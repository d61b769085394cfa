"""The largest pictures that are taken, in every format: how much memory a worker needs for them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
from PIL import Image

from clipserve.image_formats import FORMATS
from clipserve.images import ImageLimits
from reliability.costly.any_format import with_header
from reliability.load import send_once
from reliability.watch import MemoryWatch
from serving.server import Server

CALLERS = 16
FILES = 30  # of each format
RSS_BOUND = 300.0  # megabytes over idle
SAMPLE_SECONDS = 0.02

ORIENTATION = 0x0112
LIMITS = ImageLimits()


def largest_side(format: str, mode: str, coefficient_bytes: int = 0) -> int:
    """The side of the largest square picture that is decoded whole, pixels.

    Args:
        format: of `FORMATS`.
        mode: Pillow's.
        coefficient_bytes: of a pixel, that a JPEG's decoder holds for its passes.
    """
    area = 1_000_000
    needed = FORMATS[format].decoding_bytes((1000, 1000), mode, coefficient_bytes * area)
    # Some rows less: blocks of 8 x 8 or 16 x 16 pixels are held whole.
    return int((LIMITS.max_memory / needed * area) ** 0.5) - 16


def _picture(format: str, mode: str, size: tuple[int, int], **options: object) -> bytes:
    plugin = FORMATS[format].plugin
    if plugin is not None:
        plugin.register()
    colours = Image.effect_noise((64, 64), 90).resize(size, Image.Resampling.NEAREST)
    colours = colours.convert("RGB" if mode == "RGBA" else mode)
    if mode == "RGBA":
        colours.putalpha(100)
    stream = io.BytesIO()
    colours.save(stream, format, **options)
    return stream.getvalue()


def _square(format: str, mode: str, coefficient_bytes: int = 0, /, **options: object) -> Callable[[], bytes]:
    def make() -> bytes:
        side = largest_side(format, mode, coefficient_bytes)
        if FORMATS[format].plugin is None:
            # A decoder in Python is bounded by its pixels before its memory is.
            header = with_header(format, (side, side))
            counted = FORMATS[format].walk(header, LIMITS.max_structures).structures
            side = int(side * min(1, LIMITS.max_structures / max(counted, 1)) ** 0.5)
        data = _picture(format, mode, (side, side), **options)
        if len(data) <= LIMITS.max_bytes:
            return data
        # Without compression, a file is too large before its picture is.
        smaller = int(side * (LIMITS.max_bytes / len(data)) ** 0.5) - 8
        return _picture(format, mode, (smaller, smaller), **options)

    return make


def _turned() -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    side = largest_side("PNG", "RGB")
    return _picture("PNG", "RGB", (side, side), exif=exif)


# Of formats that take long to write at their best, or keep colours at half the size.
OPTIONS: dict[str, dict[str, object]] = {
    "WEBP": {"method": 0},
    "AVIF": {"speed": 10, "subsampling": "4:4:4"},
    "HEIF": {"quality": 1, "enc_params": {"preset": "ultrafast"}},
}

# Name, beginning with the format's -> what makes the file, or raises ImportError where a plugin is missing.
LARGEST: dict[str, Callable[[], bytes]] = {
    **{name: _square(name, "RGB", **OPTIONS.get(name, {})) for name in FORMATS},
    "JPEG CMYK": _square("JPEG", "CMYK"),
    "JPEG progressive": _square("JPEG", "RGB", 6, progressive=True, subsampling=0),
    "JPEG of 108 megapixels": lambda: _picture("JPEG", "RGB", (12_000, 9_000)),
    "PNG RGBA": _square("PNG", "RGBA"),
    "PNG grey": _square("PNG", "L"),
    "PNG turned": _turned,
    "PNG screenshot": lambda: _picture("PNG", "RGB", (1_080, 26_000)),
    "WEBP RGBA lossless": _square("WEBP", "RGBA", lossless=True, method=0),
    "GIF palette": _square("GIF", "P"),
    "BMP grey": _square("BMP", "L"),
    "TIFF CMYK": _square("TIFF", "CMYK", compression="tiff_lzw"),
    "TIFF RGB in one strip": _square("TIFF", "RGB", 3, compression="tiff_lzw", tiffinfo={278: 100_000}),
    "AVIF RGBA": _square("AVIF", "RGBA", speed=10),
}


def run_largest(server: Server) -> bool:
    """Sends `FILES` of the largest pictures of each format, `CALLERS` at once; prints what a worker took.

    Returns:
        Whether all were answered or told that there was no time for them, no worker was lost, and none grew
        by more than `RSS_BOUND`.
    """
    kept = True
    for name, make in LARGEST.items():
        try:
            data = make()
        except ImportError as error:
            print(f"{name}: left out, {error}")
            continue

        def send(number: int, data: bytes = data) -> int:
            with httpx.Client(timeout=240, trust_env=False) as http:
                return send_once(http, server, "clip_image", data, "application/octet-stream").status_code

        with MemoryWatch(server, SAMPLE_SECONDS) as watch, ThreadPoolExecutor(CALLERS) as pool:
            statuses = Counter(pool.map(send, range(FILES)))
        peak = watch.peaks()["clip_image"]
        # Sixteen at once may be more than there is time for, which is said: `overloaded`.
        answered = httpx.codes.OK in statuses and statuses.keys() <= {httpx.codes.OK, 503}
        kept = kept and answered and peak <= RSS_BOUND and not watch.lost()
        lost = ", the worker was lost" if watch.lost() else ""
        print(
            f"{name}: {len(data) / 1e6:.1f} MB, answers {dict(statuses)}, {peak:.0f} MB over idle{lost}",
            flush=True,
        )
    return kept
