"""From the bytes of a picture to `pixel_values`.

Pixel for pixel what `transformers`' CLIP processor makes of the same picture with Pillow, up to and
including the centre crop; rescaling and mean/std are inside the graph. Three decisions, made here once:

* **Orientation**: the EXIF orientation is applied, so that a photograph is embedded as viewers show it.
  (The original processor is given whatever the caller decoded, and does not look at EXIF.)
* **Transparency**: pictures with an alpha channel or a transparent colour are laid over white, as
  `transformers` 5 does.
* **Large JPEGs**: a caller may have them decoded at a reduced size, from which they are resized as usual.
  The server does (`draft_factor`), down to twice the size that they are resized to: on photographs the pixels
  then differ by half a level of 255 on average, and cosines to the whole decode are 0.9999 and more.

Of an animation the first frame counts. 16-bit grey is brought to 8 bits as the original brings it: Pillow
clips at 255, so such a picture should be scaled before it is sent.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from clipserve.encoder_spec import ImagePreprocessing
from clipserve.errors import RequestError

PixelArray = npt.NDArray[np.uint8]

# The start of a scan: marker, length, number of its components.
JPEG_SCAN = re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e][\x01-\x04]")

# A decoder makes smaller pictures from fewer frequencies, in a fraction of the time and memory.
JPEG_SCALES = (8, 4, 2)

TILE = 512  # pixels, the side of what is laid over white at once


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may be; checked before its pixels are decoded.

    Attributes:
        max_bytes: of the encoded file.
        max_pixels: width times height, of the picture and of its resized form. Half as many in WebP, whose
            decoder takes 16 bytes a pixel where the others take up to 9.
        max_aspect_ratio: of the longer side to the shorter. A strip grows when it is resized.
        max_scans: passes over a progressive JPEG. Ordinary ones have about ten; an empty one takes 40 bytes,
            and a decoder 17 milliseconds at 25 million pixels.
        formats: Pillow's names of the formats that are admitted; all others are never tried.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 25_000_000
    max_aspect_ratio: int = 100
    max_scans: int = 64
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def decode_image(
    data: bytes, limits: ImageLimits, *, shortest_edge: int = 1, draft_factor: int = 0
) -> Image.Image:
    """Decodes a picture to mode RGB, upright, transparency over white.

    Args:
        data: the encoded file.
        limits: what it may be.
        shortest_edge: what its shorter side is going to be resized to, pixels.
        draft_factor: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where its shorter side stays at least
            so many times `shortest_edge`; 0 decodes it whole.

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
    try:
        with warnings.catch_warnings():
            # Pillow only warns about a decompression bomb up to twice its own limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Corrupt EXIF or palette data makes Pillow warn and go on; the pixels decide.
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            with Image.open(io.BytesIO(data), formats=limits.formats) as image:
                _check_shape(image, limits)
                _check_scans(data, limits)
                if draft_factor:
                    _draft(image, shortest_edge, draft_factor)
                image.load()
                _turn_upright(image)
                return _to_rgb(image)
    except RequestError:
        raise
    except UnidentifiedImageError as error:
        raise RequestError(
            "unsupported_image_format",
            f"the bytes are no picture in an allowed format ({', '.join(limits.formats)})",
            415,
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Its limit is lower than ours may be set; beyond it the header is no more to be trusted either.
        raise RequestError(
            "image_too_large", f"{error}; allowed are {limits.max_pixels} pixels in all", 413
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError,
        # IndexError and more for damaged files: whatever it is, it came from this caller's bytes.
        raise RequestError("invalid_image", f"the image cannot be decoded: {error}") from error


def _check_shape(image: Image.Image, limits: ImageLimits) -> None:
    if image.format == "WEBP":
        _check_pixels(image.size, limits.max_pixels // 2, "in WebP")
    else:
        _check_pixels(image.size, limits.max_pixels, "in all")
    shorter, longer = sorted(image.size)
    if longer > limits.max_aspect_ratio * shorter:
        raise RequestError(
            "image_too_large",
            f"the image is {image.width} x {image.height} pixels, its longer side may be up to "
            f"{limits.max_aspect_ratio} times its shorter",
            413,
        )


def _check_pixels(size: tuple[int, int], allowed: int, of_what: str) -> None:
    width, height = size
    if width * height > allowed:
        raise RequestError(
            "image_too_large", f"the image is {width} x {height} pixels, allowed are {allowed} {of_what}", 413
        )


def _check_scans(data: bytes, limits: ImageLimits) -> None:
    # In another format, or in what is appended to a JPEG, these five bytes hardly ever occur.
    scans = len(JPEG_SCAN.findall(data))
    if scans > limits.max_scans:
        raise RequestError(
            "image_too_large", f"the image has {scans} scans, allowed are {limits.max_scans}", 413
        )


def _draft(image: Image.Image, edge: int, factor: int) -> None:
    width, height = image.size
    for scale in JPEG_SCALES:
        # The decoder rounds up, which must not turn the aspect ratio into another crop.
        reduced = (-(-width // scale), -(-height // scale))
        if min(reduced) >= factor * edge and _resized(*reduced, edge) == _resized(width, height, edge):
            # Formats other than JPEG ignore it.
            image.draft(None, (width // scale, height // scale))
            return


def _turn_upright(image: Image.Image) -> None:
    # Corrupt EXIF data says nothing of the orientation, and the pixels are whole.
    with contextlib.suppress(SyntaxError, ValueError, struct.error, KeyError, TypeError, OSError):
        # In place, and no copy of what is RGB already: 25 million pixels are 100 MB.
        ImageOps.exif_transpose(image, in_place=True)


def _to_rgb(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    # Tile by tile: as a whole it would take four bytes a pixel three times over.
    for top in range(0, image.height, TILE):
        for left in range(0, image.width, TILE):
            box = (left, top, min(left + TILE, image.width), min(top + TILE, image.height))
            tile = image.crop(box).convert("RGBA")
            white = Image.new("RGBA", tile.size, (255, 255, 255, 255))
            rgb.paste(Image.alpha_composite(white, tile).convert("RGB"), box)
    return rgb


def preprocess(image: Image.Image, preprocessing: ImagePreprocessing, limits: ImageLimits) -> PixelArray:
    """Resizes and crops an RGB picture.

    Returns:
        uint8 `[3, crop_height, crop_width]`, RGB, 0–255.

    Raises:
        RequestError: `image_too_large` (413) for a picture so long and thin that its resized form exceeds
            the pixel limit.
    """
    width, height = image.size
    edge = preprocessing.shortest_edge
    size = _resized(width, height, edge)
    _check_pixels(size, limits.max_pixels, f"when it is resized from {width} x {height}")
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
