"""From the bytes of a picture to `pixel_values`.

Pixel for pixel what `transformers`' CLIP processor makes of the same picture with Pillow, up to and
including the centre crop; rescaling and mean/std are inside the graph. Five decisions, made here once:

* **Orientation**: the EXIF orientation is applied, so that a photograph is embedded as viewers show it.
  (The original processor is given whatever the caller decoded, and does not look at EXIF.)
* **Transparency**: pictures with an alpha channel or a transparent colour are laid over white, as
  `transformers` 5 does.
* **Colour**: pixels with a colour profile are brought to sRGB (`color`), unless they are to be as the
  original, which does not look at profiles.
* **Large JPEGs**: a caller may have them decoded at a reduced size (`draft_factor`), from which they are
  resized as usual. One that does not fit in memory otherwise is decoded so in any case.
* **Memory**: what bounds a picture is what its decoding takes (`max_memory`), not its number of pixels.

Of an animation the first frame counts, of a TIFF the first page. 16-bit grey is brought to 8 bits as the
original
brings it: Pillow clips at 255, so such a picture should be scaled before it is sent.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from clipserve.colors import to_srgb
from clipserve.containers import (
    Container,
    Walker,
    walk_bmp,
    walk_gif,
    walk_iso,
    walk_jpeg,
    walk_png,
    walk_tiff,
    walk_webp,
)
from clipserve.encoder_spec import ImagePreprocessing
from clipserve.errors import RequestError

PixelArray = npt.NDArray[np.uint8]
Color = Literal["srgb", "ignore"]
COLORS: tuple[str, ...] = get_args(Color)


@dataclass(frozen=True)
class ImageFormat:
    """A format that is read.

    Attributes:
        name: Pillow's.
        endings: of files, in lower case.
        signature: what its files begin with.
        walk: reads the container before the decoder does.
        decoder_bytes: of a pixel, that the decoder holds beside the picture that it makes, at most
        (measured).
        extra: of this package, which brings the decoder; empty where Pillow itself has it.
    """

    name: str
    endings: tuple[str, ...]
    signature: re.Pattern[bytes]
    walk: Walker
    decoder_bytes: int = 0
    extra: str = ""


# The one table of formats. The limits of a picture in each follow from it: see `decoding_bytes`.
FORMATS: dict[str, ImageFormat] = {
    format.name: format
    for format in (
        ImageFormat(
            "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), re.compile(rb"\xff\xd8\xff"), walk_jpeg
        ),
        ImageFormat("PNG", (".png", ".apng"), re.compile(rb"\x89PNG\r\n\x1a\n"), walk_png),
        ImageFormat("WEBP", (".webp",), re.compile(rb"(?s)RIFF....WEBP"), walk_webp, 14),
        ImageFormat("GIF", (".gif",), re.compile(rb"GIF8[79]a"), walk_gif),
        ImageFormat("BMP", (".bmp",), re.compile(rb"BM"), walk_bmp),
        ImageFormat("TIFF", (".tif", ".tiff"), re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), walk_tiff),
        ImageFormat(
            "AVIF",
            (".avif",),
            re.compile(rb"(?s)....ftyp(?:avi[fs]|(?:mif1|msf1)(?=.{0,64}avi[fs]))"),
            walk_iso,
            12,
        ),
        ImageFormat(
            "HEIF",
            (".heic", ".heif", ".hif"),
            re.compile(rb"(?s)....ftyp(?:he[iv][cmsx]|(?:mif1|msf1)(?=.{0,64}he[iv][cmsx]))"),
            walk_iso,
            12,
            extra="heic",
        ),
    )
}

# A decoder makes smaller pictures from fewer frequencies, in a fraction of the time and memory.
JPEG_SCALES = (8, 4, 2)

# Bytes of a pixel in Pillow's memory; 4 in all other modes, RGB among them.
PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
RGB_BYTES = 4

# Pixels up to which `max_scans` holds; larger pictures may have proportionally fewer.
SCAN_PIXELS = 25_000_000

TILE = 512  # pixels, the side of what is laid over white at once
WHITE = (255, 255, 255)

END_OF_JPEG = b"\xff\xd9"

# What may be missing at the end of a JPEG, thrice: each begins with other bits than zeros, and than the
# others do.
FILLERS = tuple(bytes(range(first, 250, 3)) * 40 for first in (170, 85, 235))

# One thread decodes a picture, as with every other format: workers are as many as there are cores.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may be; checked before its pixels are decoded.

    Attributes:
        max_bytes: of the encoded file.
        max_memory: bytes that decoding a picture, turning and resizing it may take at a time. By default 28
            million pixels in RGB and RGBA, 45 in grey and with a palette, 14 in AVIF and HEIC, 12.5 in WebP;
            JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where they would take more.
        max_aspect_ratio: of the longer side to the shorter. A strip grows when it is resized.
        max_scans: passes over a progressive JPEG of up to 25 million pixels. Ordinary ones have about ten;
        an empty
            one takes 40 bytes, and a decoder 17 milliseconds at 25 million pixels.
        max_structures: segments, chunks, blocks, boxes, tags, strips or tiles of a file: see
            `clipserve.containers`. A PNG of 20 MB in its usual chunks of 8 kB has 2,500.
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
    format = _format_of(data, limits)
    container = format.walk(data, limits.max_structures)
    _check_container(container, format, limits)
    try:
        with warnings.catch_warnings():
            # Only within twice Pillow's own limit of pixels, and ours is one of memory.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # Corrupt EXIF or palette data makes Pillow warn and go on; the pixels decide.
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            with _opened(data, format) as image:
                _check_shape(image, limits)
                scale = _scale(image, container, format, limits, shortest_edge, draft_factor)
                if container.ended:
                    _load(image, scale)
                else:
                    _load_without_end(image, data, format, scale)
                _turn_upright(image)
                return _to_rgb(image, color)
    except RequestError:
        raise
    except UnidentifiedImageError as error:
        raise _unsupported(limits) from error
    except Image.DecompressionBombError as error:
        # Pillow's own limit, beyond which it opens no picture.
        raise RequestError("image_too_large", str(error), 413) from error
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError,
        # IndexError and more for damaged files: whatever it is, it came from this caller's bytes.
        raise RequestError("invalid_image", f"the image cannot be decoded: {error}") from error


def _format_of(data: bytes, limits: ImageLimits) -> ImageFormat:
    for name in limits.formats:
        format = FORMATS[name]
        if format.signature.match(data):
            if format.extra:
                _register(format)
            return format
    raise _unsupported(limits)


def _unsupported(limits: ImageLimits) -> RequestError:
    return RequestError(
        "unsupported_image_format",
        f"the bytes are no picture in an allowed format ({', '.join(limits.formats)})",
        415,
    )


def _register(format: ImageFormat) -> None:
    """Makes a decoder that is no part of Pillow known to it."""
    if format.name in Image.OPEN:
        return
    try:
        import pillow_heif  # an extra, and a second to import
    except ImportError as error:
        raise RequestError(
            "unsupported_image_format",
            f"the image is a HEIC picture, which cannot be decoded here: the package pillow-heif is missing; "
            f"run 'make {format.extra}' (pip: clipserve[{format.extra}]), or send a JPEG",
            415,
        ) from error
    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


def _opened(data: bytes, format: ImageFormat) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(data), formats=(format.name,))


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
    if format.name == "JPEG":
        return
    # These decoders take their memory when a file is opened; the others are asked for the mode first.
    mode = "RGBA" if format.decoder_bytes else "L"
    size = container.width, container.height
    needed = decoding_bytes(size, mode, format, container.decoder_bytes)
    if needed > limits.max_memory:
        raise _too_much_memory(size, "to decode, or more", needed, limits)


def decoding_bytes(size: tuple[int, int], mode: str, format: ImageFormat, decoder_bytes: int = 0) -> int:
    """What decoding a picture takes at its peak.

    Args:
        size: width and height that the decoder makes, pixels.
        mode: Pillow's, of what it makes.
        format: of the file.
        decoder_bytes: in all, that the decoder holds for this very file.

    Returns:
        The most of: picture and decoder; the picture twice, when it is turned; the picture and its RGB form.
    """
    pixel = PIXEL_BYTES.get(mode, RGB_BYTES)
    pixels = size[0] * size[1]
    return max(
        pixels * (pixel + format.decoder_bytes) + decoder_bytes,
        pixels * 2 * pixel,
        pixels * (pixel + RGB_BYTES),
    )


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
) -> int:
    """By what a picture is reduced when it is decoded: 1, or in a JPEG 2, 4 or 8.

    Raises:
        RequestError: `image_too_large` (413), it takes too much memory at every size.
    """
    size = max(image.size, (container.width, container.height), key=lambda side: side[0] * side[1])
    needed = {
        scale: decoding_bytes(_reduced(size, scale), image.mode, format, container.decoder_bytes)
        for scale in ((1, *JPEG_SCALES) if format.name == "JPEG" else (1,))
        if scale == 1 or min(_reduced(size, scale)) >= edge
    }
    fitting = [scale for scale in needed if needed[scale] <= limits.max_memory]
    if not fitting:
        held = container.decoder_bytes
        what = f"in mode {image.mode}" + (f", {held} bytes of it the decoder's" if held else "")
        raise _too_much_memory(size, what, min(needed.values()), limits)
    for scale in JPEG_SCALES:
        # The decoder rounds up, which must not turn the aspect ratio into another crop.
        reduced = _reduced(size, scale)
        same_crop = _resized(*reduced, edge) == _resized(*size, edge)
        if scale in fitting and factor and min(reduced) >= factor * edge and same_crop:
            return scale
    return min(fitting)


def _reduced(size: tuple[int, int], scale: int) -> tuple[int, int]:
    return -(-size[0] // scale), -(-size[1] // scale)


def _load(image: ImageFile.ImageFile, scale: int) -> None:
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    image.load()


def _load_without_end(image: ImageFile.ImageFile, data: bytes, format: ImageFormat, scale: int) -> None:
    """Decodes a JPEG whose end marker is missing, and refuses it if pixels are missing too.

    The decoder fills what is missing with zeros and tells nobody. So the picture is decoded with several
    ends; where pixels depend on the end, some belong there.
    """
    present = data[:-1] if data.endswith(b"\xff") else data
    checksums = set()
    for filler in FILLERS:
        with _opened(present + filler + END_OF_JPEG, format) as other:
            _load(other, scale)
            checksums.add(_checksum(other))
    image.fp = io.BytesIO(present + END_OF_JPEG)
    _load(image, scale)
    if checksums != {_checksum(image)}:
        raise RequestError("invalid_image", "the image cannot be decoded: its file is truncated")


def _checksum(image: Image.Image) -> int:
    checksum = 0
    # Strip by strip: as a whole it would be copied.
    for top in range(0, image.height, TILE):
        strip = image.crop((0, top, image.width, min(top + TILE, image.height)))
        checksum = zlib.crc32(strip.tobytes(), checksum)
    return checksum


def _turn_upright(image: Image.Image) -> None:
    # Corrupt EXIF data says nothing of the orientation, and the pixels are whole.
    with contextlib.suppress(SyntaxError, ValueError, struct.error, KeyError, TypeError, OSError):
        # In place, and no copy of what is RGB already: 25 million pixels are 100 MB.
        ImageOps.exif_transpose(image, in_place=True)


def _to_rgb(image: Image.Image, color: Color) -> Image.Image:
    profile = image.info.get("icc_profile") if color == "srgb" else None
    if not isinstance(profile, bytes):
        profile = b""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        return _over_white(image, to_srgb(profile, "RGBA"))
    if image.mode in ("L", "CMYK") and (transform := to_srgb(profile, image.mode)) is not None:
        converted = ImageCms.applyTransform(image, transform)
        if converted is not None:
            return converted
    image = image if image.mode == "RGB" else image.convert("RGB")
    if (transform := to_srgb(profile, "RGB")) is not None:
        ImageCms.applyTransform(image, transform, inPlace=True)
    return image


def _over_white(image: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    rgb = Image.new("RGB", image.size, WHITE)
    # Grey stays grey until the end: the same numbers, a third less work.
    mode = "LA" if image.mode == "LA" and transform is None else "RGBA"
    white = (*WHITE[: len(mode) - 1], 255)
    # Tile by tile: as a whole it would take four bytes a pixel three times over.
    for top in range(0, image.height, TILE):
        for left in range(0, image.width, TILE):
            box = (left, top, min(left + TILE, image.width), min(top + TILE, image.height))
            tile = image.crop(box).convert(mode)
            least, most = tile.getchannel("A").getextrema()
            if most == 0:
                continue
            if transform is not None:
                ImageCms.applyTransform(tile, transform, inPlace=True)
            if least != 255:
                tile = Image.alpha_composite(Image.new(mode, tile.size, white), tile)
            rgb.paste(tile.convert("RGB"), box)
    return rgb


def preprocess(image: Image.Image, preprocessing: ImagePreprocessing, limits: ImageLimits) -> PixelArray:
    """Resizes and crops an RGB picture.

    Returns:
        uint8 `[3, crop_height, crop_width]`, RGB, 0–255.

    Raises:
        RequestError: `image_too_large` (413) for a picture so long and thin that its resized form exceeds
            the memory limit.
    """
    width, height = image.size
    edge = preprocessing.shortest_edge
    size = _resized(width, height, edge)
    # Resized in width first, then in height.
    needed = RGB_BYTES * (width * height + size[0] * height + size[0] * size[1])
    if needed > limits.max_memory:
        raise _too_much_memory(size, f"when it is resized from {width} x {height}", needed, limits)
    if size != image.size:
        image = image.resize(size, Image.Resampling[preprocessing.resample.upper()])
    left = (size[0] - preprocessing.crop_width) // 2
    top = (size[1] - preprocessing.crop_height) // 2
    box = (left, top, left + preprocessing.crop_width, top + preprocessing.crop_height)
    pixels = np.asarray(image.crop(box), dtype=np.uint8)  # [H, W, 3]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resized(width: int, height: int, edge: int) -> tuple[int, int]:
    # The longer side is truncated, not rounded: get_resize_output_image_size of transformers.
    return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)
