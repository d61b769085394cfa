"""From the bytes of a picture to `pixel_values`.

Pixel for pixel what `transformers`' CLIP and SigLIP processors, and open_clip's transforms, make of the same
picture with Pillow, up to and including the centre crop; rescaling and mean/std are inside the graph. Five
decisions, made here once:

* **Orientation**: the EXIF orientation is applied, so that a photograph is embedded as viewers show it.
  (The original processor is given whatever the caller decoded, and does not look at EXIF.)
* **Transparency**: pictures with an alpha channel or a transparent colour are laid over white, as
  `transformers` 5 does.
* **Colour**: pixels with a colour profile are brought to sRGB (`color`), unless they are to be as the
  original, which does not look at profiles; both in `clipserve.colors`.
* **Large JPEGs**: a caller may have them decoded at a reduced size (`draft_factor`), from which they are
  resized as usual. One that does not fit in memory otherwise is decoded so in any case.
* **Memory**: what bounds a picture is what its decoding takes (`max_memory`), not its number of pixels.

Of an animation the first frame counts, of a TIFF the first page. 16-bit grey is brought to 8 bits as the
original brings it: Pillow clips at 255, so such a picture should be scaled before it is sent. What is read is
in `clipserve.image_formats`.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from clipserve.colors import MAX_PROFILE_BYTES, Color, to_rgb
from clipserve.errors import RequestError
from clipserve.image_formats import FORMATS, format_of, unsupported
from clipserve.image_formats.base import RGB_BYTES, Container, ImageFormat
from clipserve.image_formats.jpeg import load_reduced, load_without_end
from clipserve.preprocessing import ImagePreprocessing, shortest_edge_size

PixelArray = npt.NDArray[np.uint8]

# Pixels up to which `max_scans` holds; larger pictures may have proportionally fewer.
SCAN_PIXELS = 25_000_000

# Beyond it Pillow refuses the picture, not the chunk: a profile in a PNG may be as large as elsewhere.
PngImagePlugin.MAX_TEXT_CHUNK = MAX_PROFILE_BYTES


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may be; checked before its pixels are decoded.

    Attributes:
        max_bytes: of the encoded file.
        max_memory: bytes that decoding a picture, turning and resizing it may take at a time. By default 28
            million pixels in RGB and RGBA, 45 in grey and with a palette, 14 in AVIF and HEIC, 12.5 in WebP;
            JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where they would take more.
        max_aspect_ratio: of the longer side to the shorter. A strip grows when it is resized.
        max_scans: passes over a progressive JPEG of up to 25 million pixels. Ordinary ones have about ten; an
            empty one takes 40 bytes, and a decoder 17 milliseconds at 25 million pixels.
        max_structures: segments, chunks, blocks, boxes, tags, strips or tiles of a file: see
            `clipserve.image_formats.base`. A PNG of 20 MB in its usual chunks of 8 kB has 2,500.
        formats: names of the formats that are admitted, of `FORMATS`; all others are never tried.
    """

    max_bytes: int = 20_000_000
    max_memory: int = 225_000_000
    max_aspect_ratio: int = 100
    max_scans: int = 64
    max_structures: int = 20_000
    formats: tuple[str, ...] = tuple(FORMATS)


def decode_image(
    data: bytes,
    limits: ImageLimits,
    *,
    shortest_edge: int = 1,
    draft_factor: int = 0,
    color: Color = "srgb",
    claim: Callable[[int], object] = lambda needed: None,
) -> Image.Image:
    """Decodes a picture to mode RGB, upright, transparency over white.

    A JPEG that lacks its end marker and nothing else is taken, as viewers take it.

    Args:
        data: the encoded file.
        limits: what it may be.
        shortest_edge: what its shorter side is going to be resized to, pixels.
        draft_factor: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where its shorter side stays at least
            so many times `shortest_edge`; 0 decodes it whole. Either way, one that would take more than
            `max_memory` is decoded at the largest of these sizes that does not.
        color: `srgb` brings pictures with a colour profile to sRGB, `ignore` leaves their pixels as they are.
        claim: is told, before it is taken, how many bytes decoding this picture and resizing it to
            `shortest_edge` takes at a time.

    Raises:
        RequestError: `image_too_large` (413), `unsupported_image_format` (415), `invalid_image` (400).
    """
    if not data:
        raise RequestError("empty_image", "the image has 0 bytes")
    if len(data) > limits.max_bytes:
        raise RequestError(
            "image_too_large",
            f"the image has {len(data)} bytes, allowed are {limits.max_bytes}",
            413,
        )
    format = format_of(data, limits.formats)
    container = format.walk(data, limits.max_structures)
    _check_container(container, format, limits)
    try:
        with QUIET:
            if format.decoder_bytes:
                # Its memory is taken when it is opened, of a size that only the container tells by then.
                claim(limits.max_memory)
            with Image.open(io.BytesIO(data), formats=(format.name,)) as image:
                _check_shape(image, limits)
                scale, needed = _scale(image, container, format, limits, shortest_edge, draft_factor)
                if not format.decoder_bytes:
                    reduced = _reduced(image.size, scale)
                    # Of a squashed one no less than it takes: it becomes no larger than this.
                    resized = shortest_edge_size(*reduced, shortest_edge)
                    claim(max(needed, _resizing_bytes(reduced, resized)))
                if container.ended:
                    load_reduced(image, scale)
                else:
                    load_without_end(image, data, scale)
                _turn_upright(image)
                return to_rgb(image, color)
    except RequestError:
        raise
    except UnidentifiedImageError as error:
        raise unsupported(limits.formats) from error
    except Image.DecompressionBombError as error:
        # Pillow's own limit, beyond which it opens no picture.
        raise RequestError("image_too_large", str(error), 413) from error
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError,
        # IndexError and more for damaged files: whatever it is, it came from this caller's bytes.
        raise RequestError("invalid_image", f"the image cannot be decoded: {error}") from error


class _Quiet:
    """Without the warnings of Pillow that mean nothing here, in all threads that are in a `with` block of it.

    `warnings.catch_warnings` in one thread puts back what another one has changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._context = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._context = warnings.catch_warnings()
                self._context.__enter__()
                # Only within twice Pillow's own limit of pixels, and ours is one of memory.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                # Corrupt EXIF or palette data makes Pillow warn and go on; the pixels decide.
                warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._context.__exit__(None, None, None)


QUIET = _Quiet()


def _check_container(container: Container, format: ImageFormat, limits: ImageLimits) -> None:
    if container.structures > limits.max_structures:
        raise RequestError(
            "image_too_large",
            f"the image has {container.structures} or more {container.called}, "
            f"allowed are {limits.max_structures}",
            413,
        )
    if container.refused:
        raise RequestError("unsupported_image_format", f"the image is {container.refused}, not admitted", 415)
    pixels = container.width * container.height
    allowed = limits.max_scans * SCAN_PIXELS // max(pixels, SCAN_PIXELS)
    if container.scans > allowed:
        raise RequestError(
            "image_too_large", f"the image has {container.scans} scans, allowed are {allowed}", 413
        )
    if format.scales:
        return
    # These decoders take their memory when a file is opened; the others are asked for the mode first.
    mode = "RGBA" if format.decoder_bytes else "L"
    size = container.width, container.height
    needed = format.decoding_bytes(size, mode, container.decoder_bytes)
    if needed > limits.max_memory:
        raise _too_much_memory(size, "to decode, or more", needed, limits)


def _too_much_memory(size: tuple[int, int], what: str, needed: int, limits: ImageLimits) -> RequestError:
    return RequestError(
        "image_too_large",
        f"the image is {size[0]} x {size[1]} pixels, which take {needed} bytes of memory {what}; allowed are "
        f"{limits.max_memory}",
        413,
    )


def _check_shape(image: Image.Image, limits: ImageLimits) -> None:
    shorter, longer = sorted(image.size)
    if longer > limits.max_aspect_ratio * shorter:
        raise RequestError(
            "image_too_large",
            f"the image is {image.width} x {image.height} pixels, its longer side may be up to "
            f"{limits.max_aspect_ratio} times its shorter",
            413,
        )


def _scale(
    image: Image.Image,
    container: Container,
    format: ImageFormat,
    limits: ImageLimits,
    edge: int,
    factor: int,
) -> tuple[int, int]:
    """By what a picture is reduced when it is decoded, 1 or one of `format.scales`, and the bytes it takes.

    Raises:
        RequestError: `image_too_large` (413), it takes too much memory at every size.
    """
    size = max(image.size, (container.width, container.height), key=lambda side: side[0] * side[1])
    needed = {
        scale: format.decoding_bytes(_reduced(size, scale), image.mode, container.decoder_bytes)
        for scale in (1, *format.scales)
        if scale == 1 or min(_reduced(size, scale)) >= edge
    }
    fitting = [scale for scale in needed if needed[scale] <= limits.max_memory]
    if not fitting:
        held = container.decoder_bytes
        what = f"in mode {image.mode}" + (f", {held} bytes of it the decoder's" if held else "")
        raise _too_much_memory(size, what, min(needed.values()), limits)
    for scale in format.scales:
        # The decoder rounds up, which must not turn the aspect ratio into another crop.
        reduced = _reduced(size, scale)
        same_crop = shortest_edge_size(*reduced, edge) == shortest_edge_size(*size, edge)
        if scale in fitting and factor and min(reduced) >= factor * edge and same_crop:
            return scale, needed[scale]
    return min(fitting), needed[min(fitting)]


def _reduced(size: tuple[int, int], scale: int) -> tuple[int, int]:
    return -(-size[0] // scale), -(-size[1] // scale)


def _turn_upright(image: Image.Image) -> None:
    # Corrupt EXIF data says nothing of the orientation, and the pixels are whole.
    with contextlib.suppress(SyntaxError, ValueError, struct.error, KeyError, TypeError, OSError):
        # In place, and no copy of what is RGB already: 25 million pixels are 100 MB.
        ImageOps.exif_transpose(image, in_place=True)


def preprocess(image: Image.Image, preprocessing: ImagePreprocessing, limits: ImageLimits) -> PixelArray:
    """Resizes and crops an RGB picture, as its encoder's spec has it.

    Returns:
        uint8 `[3, crop_height, crop_width]`, RGB, 0–255.

    Raises:
        RequestError: `image_too_large` (413) for a picture so long and thin that its resized form exceeds
            the memory limit.
    """
    width, height = image.size
    size = preprocessing.resized(width, height)
    needed = _resizing_bytes(image.size, size)
    if needed > limits.max_memory:
        raise _too_much_memory(size, f"when it is resized from {width} x {height}", needed, limits)
    if size != image.size:
        image = image.resize(size, Image.Resampling[preprocessing.resample.upper()])
    pixels = np.asarray(image.crop(preprocessing.crop_box(*size)), dtype=np.uint8)  # [H, W, 3]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resizing_bytes(size: tuple[int, int], resized: tuple[int, int]) -> int:
    # Resized in width first, then in height.
    (width, height), (to_width, to_height) = size, resized
    return RGB_BYTES * (width * height + to_width * height + to_width * to_height)
