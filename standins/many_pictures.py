"""Draws many different pictures fast: a few scenes, and cheap variations of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

BASES = 200
SIZE = (120, 90)  # pixels

# Written an hour ago: a file that has only just changed is looked at again by the next run.
AGE_NS = 3600 * 10**9


def write_pictures(folder: Path, count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> list[Path]:
    """Writes `count` JPEGs of `size`, no two of the same bytes, in subfolders of a thousand."""
    written = []
    for number, image in enumerate(draw_pictures(count, seed, size)):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=85)
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - AGE_NS))
        written.append(path)
    return written


def draw_pictures(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> Iterator[Image.Image]:
    """Gives `count` pictures of `size`, no two of the same pixels."""
    rng = np.random.default_rng(seed)
    larger = (size[0] * 4 // 3, size[1] * 4 // 3)
    bases = [
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(larger, Image.Resampling.BICUBIC)
        for _ in range(min(count, BASES))
    ]
    for number in range(count):
        base = bases[number % len(bases)]
        # Another part of the base, and a mark that is the picture's number.
        left, top = (int(rng.integers(0, of - to)) for of, to in zip(larger, size, strict=True))
        image = base.crop((left, top, left + size[0], top + size[1]))
        bits = np.unpackbits(np.frombuffer(number.to_bytes(4, "big"), np.uint8)).reshape(4, 8) * 255
        image.paste(Image.fromarray(bits.astype(np.uint8)).resize((32, 16), Image.Resampling.NEAREST), (2, 2))
        yield image
