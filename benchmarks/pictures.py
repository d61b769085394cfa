"""What pictures cost and what decoding them in other ways changes: `python -m benchmarks.pictures STORE`.

The figures of docs/pictures.md. Times are CPU seconds of this process: waiting for a core does
not count.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image, ImageCms, ImageDraw, ImageFont

from clipserve.colors import Color
from clipserve.command import run_command
from clipserve.encoder import ExportedImageEncoder
from clipserve.encoder_spec import FloatArray
from clipserve.errors import RequestError
from clipserve.images import ImageLimits, decode_image, preprocess
from clipserve.settings import Settings
from clipserve.store import Store
from reliability.costly import COSTLY
from reliability.largest import LARGEST

LIMITS = ImageLimits()
FACTORS = (2, 4, Settings().draft_factor, 8)
PHOTOGRAPHS = (
    "astronaut.png", "coffee.png", "chelsea.png", "retina.jpg", "hubble_deep_field.jpg", "camera.png",
    "brick.png", "grass.png", "gravel.png",
)  # fmt: skip
PERIODS = (2.25, 2.5, 3.25, 3.5, 4.5, 5.75, 6.5, 7.0, 9.0, 10.0, 10.5, 11.0, 13.0, 16.0, 20.0, 24.0)  # pixels
TEXT = "The quick brown fox jumps over the lazy dog 0123456789 " * 8

# Adobe RGB (1998), as cameras write it, out of one of scikit-image's photographs.
ADOBE_RGB = "rocket.jpg"


def photograph(name: str) -> Image.Image:
    """One of scikit-image's, in RGB."""
    with Image.open(Path(skimage.data.__file__).parent / name) as image:
        return image.convert("RGB")


def stripes(side: int, period: float) -> Image.Image:
    """Black and white, upright."""
    row = (np.arange(side) // (period / 2) % 2 * 255).astype(np.uint8)
    return Image.fromarray(np.tile(row, (side, 1)))


def rings(side: int) -> Image.Image:
    """All frequencies in all directions: what moiré is made of."""
    y, x = np.mgrid[:side, :side].astype(np.float64) - side / 2
    return Image.fromarray((127.5 + 127.5 * np.cos(np.pi * (x * x + y * y) / side)).astype(np.uint8))


def page(side: int, size: int) -> Image.Image:
    """Lines of text, letters of `size` pixels."""
    image = Image.new("L", (side, side), 255)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for top in range(10, side, size * 4 // 3):
        draw.text((10, top), TEXT, fill=0, font=font)
    return image


def contents(side: int) -> Iterator[tuple[str, Image.Image]]:
    """Kind and picture, all `side` x `side` pixels."""
    for name in PHOTOGRAPHS:
        yield "photographs", photograph(name).resize((side, side), Image.Resampling.BICUBIC)
    yield "scanned page", photograph("page.png").resize((side, side), Image.Resampling.BICUBIC)
    for size in (9, 12, 18, 30):
        yield "pages of text", page(side, size)
    yield "rings", rings(side)
    for period in PERIODS:
        yield "stripes", stripes(side, period)


def jpeg(image: Image.Image, **options: object) -> bytes:
    """A JPEG of quality 90."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def vector(encoder: ExportedImageEncoder, data: bytes, factor: int = 0, color: Color = "srgb") -> FloatArray:
    """The embedding of a file."""
    edge = encoder.preprocessing.shortest_edge
    image = decode_image(data, LIMITS, shortest_edge=edge, draft_factor=factor, color=color)
    embedding: FloatArray = encoder.embed([preprocess(image, encoder.preprocessing, LIMITS)])[0]
    return embedding


def measure_draft(encoder: ExportedImageEncoder) -> None:
    """Least cosine to the whole decode, by kind of picture and factor, where reducing begins."""
    for factor in FACTORS:
        side = 2 * factor * encoder.preprocessing.shortest_edge
        least: dict[str, float] = {}
        for kind, image in contents(side):
            data = jpeg(image)
            cosine = float(vector(encoder, data) @ vector(encoder, data, factor))
            least[kind] = min(cosine, least.get(kind, 1.0))
        print(f"draft_factor {factor}, {side} pixels: {round_all(least)}", flush=True)
    data = jpeg(photograph("retina.jpg").resize((4000, 3000)))
    for factor in (0, *FACTORS):
        seconds = cpu_seconds(partial(decode_image, data, LIMITS, shortest_edge=224, draft_factor=factor))
        print(f"12 megapixels, draft_factor {factor}: {1000 * seconds:.0f} ms")


def measure_colors(encoder: ExportedImageEncoder) -> None:
    """What ignoring Adobe RGB costs: cosine to the managed picture."""
    with Image.open(Path(skimage.data.__file__).parent / ADOBE_RGB) as image:
        profile = image.info["icc_profile"]
    cosines = []
    for name in PHOTOGRAPHS:
        wide = ImageCms.profileToProfile(
            photograph(name), ImageCms.createProfile("sRGB"), io.BytesIO(profile), outputMode="RGB"
        )
        assert wide is not None
        data = jpeg(wide, icc_profile=profile)
        cosines.append(float(vector(encoder, data) @ vector(encoder, data, color="ignore")))
    print(
        f"Adobe RGB, profile ignored: cosine {np.mean(cosines):.3f} on average, "
        f"{min(cosines):.3f} at the least"
    )
    data = jpeg(Image.new("RGB", (4000, 3000), "olive"), icc_profile=profile)
    colors: tuple[Color, ...] = ("ignore", "srgb")
    for color in colors:
        for factor in (0, Settings().draft_factor):
            seconds = cpu_seconds(
                partial(decode_image, data, LIMITS, shortest_edge=224, draft_factor=factor, color=color)
            )
            print(f"12 megapixels with a profile, {color}, draft_factor {factor}: {1000 * seconds:.0f} ms")


def measure_costs() -> None:
    """CPU seconds of one picture: those made to cost, and the largest honest ones."""
    for title, files in (("costly", COSTLY), ("largest", LARGEST)):
        costs = []
        for name, make in files.items():
            data = make()
            costs.append((cpu_seconds(partial(_decode, data), runs=1), name))
        costs.sort(reverse=True)
        print(
            f"{title}, {len(costs)} files: " + ", ".join(f"{name} {s:.2f} s" for s, name in costs[:6]),
            flush=True,
        )


def _decode(data: bytes) -> str:
    try:
        decode_image(data, LIMITS, shortest_edge=224, draft_factor=Settings().draft_factor)
    except RequestError as error:
        return error.code
    return ""


def cpu_seconds(run: Callable[[], object], runs: int = 5) -> float:
    """The median of some runs."""
    found = []
    for _ in range(runs):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return float(np.median(found))


def round_all(values: dict[str, float]) -> str:
    """Five digits each."""
    return ", ".join(f"{name} {value:.5f}" for name, value in values.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__)
    parser.add_argument("store", type=Path, help="folder of an image encoder for the CPU")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)

    def measure() -> None:
        file = Store.read(arguments.store).model(None).best("image", "cpu")
        encoder = ExportedImageEncoder(file.path, torch.device("cpu"))
        measure_costs()
        measure_colors(encoder)
        measure_draft(encoder)

    return run_command("pictures", measure)


if __name__ == "__main__":
    sys.exit(main())
