"""What everybody is asked: the same pictures, sentences and labels, seeded."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import skimage
from PIL import Image, ImageOps

from benchmarks.load import FRESH
from demo.captions import load_vocabularies
from demo.world import RUNNING_EXAMPLE

Kind = Literal["image", "text", "similarity"]
Encoding = Literal["base64", "float", "raw"]

# Pixels of a picture, and how many different ones.
SIZES: dict[str, tuple[tuple[int, int], int]] = {
    "0.3 MP": ((640, 480), 32),
    "2 MP": ((1632, 1224), 6),
    "12 MP": ((4000, 3000), 3),
}
SMALLEST = "0.3 MP"
JPEG_QUALITY = 90
GRAIN = 4.0  # standard deviation, of 255

# Photographs that come with scikit-image.
PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png")

KNOWN_LABELS = 1000
FEW_LABELS = 8
TEXTS_AT_ONCE = 32


@dataclass(frozen=True)
class Workload:
    """One kind of request.

    Attributes:
        kind: of endpoint.
        megapixels: a key of `SIZES`, where pictures are sent.
        texts: sentences or labels of a request.
        fresh: no two requests have a label in common.
        encoding: of the vectors in the answer; `raw` sends a picture's bytes instead of JSON, to get
            floats.
        door: whether it goes through the endpoint that OpenAI's clients know, in their form.
    """

    kind: Kind
    megapixels: str = SMALLEST
    texts: int = 0
    fresh: bool = False
    encoding: Encoding = "base64"
    door: bool = False

    @property
    def items(self) -> int:
        """What a rate counts: pictures, texts, or comparisons of one picture."""
        return self.texts if self.kind == "text" else 1


WORKLOADS: dict[str, Workload] = {
    "image": Workload("image"),
    "image_raw": Workload("image", encoding="raw"),
    "image_2mp": Workload("image", "2 MP"),
    "image_12mp": Workload("image", "12 MP"),
    "text": Workload("text", texts=1),
    "text_floats": Workload("text", texts=1, encoding="float"),
    "text_batch32": Workload("text", texts=TEXTS_AT_ONCE),
    "door_image": Workload("image", door=True),
    "door_text": Workload("text", texts=1, door=True),
    "similarity_fresh": Workload("similarity", texts=FEW_LABELS, fresh=True),
    "similarity_repeated": Workload("similarity", texts=FEW_LABELS),
    "similarity_1000_known": Workload("similarity", texts=KNOWN_LABELS),
}


def sentences() -> list[str]:
    """The running example in all 40 languages, one language after the other."""
    return [
        vocabulary.captions(scene)[0]
        for scene in RUNNING_EXAMPLE
        for vocabulary in load_vocabularies().values()
    ]


def labels(workload: Workload) -> list[str]:
    """Labels of one similarity request, from all languages."""
    phrases = list(dict.fromkeys(p for v in load_vocabularies().values() for p in v.phrases()))
    spread = np.random.default_rng(0).permutation(len(phrases))[: workload.texts]
    chosen = [phrases[i] for i in spread]
    return [f"{label} {FRESH.decode()}" for label in chosen] if workload.fresh else chosen


def write_pictures(folder: Path) -> dict[str, list[Path]]:
    """Writes the JPEG files that are not there yet, cut from photographs; paths by size."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, (size, count) in SIZES.items():
        found[name] = [folder / f"{size[0]}x{size[1]}-{number:02d}.jpg" for number in range(count)]
        for number, path in enumerate(found[name]):
            if not path.is_file():
                buffer = io.BytesIO()
                _photograph(number, size).save(buffer, "JPEG", quality=JPEG_QUALITY)
                path.write_bytes(buffer.getvalue())
    return found


def _photograph(number: int, size: tuple[int, int]) -> Image.Image:
    """A photograph cut to a size, perhaps mirrored, and with a sensor's grain where it had to be enlarged."""
    rng = np.random.default_rng(number)
    path = Path(skimage.__file__).parent / "data" / PHOTOGRAPHS[number % len(PHOTOGRAPHS)]
    with Image.open(path) as photograph:
        enlarged = size[0] > photograph.width
        cut = ImageOps.fit(photograph.convert("RGB"), size, centering=(rng.random(), rng.random()))
    if rng.random() < 0.5:
        cut = ImageOps.mirror(cut)
    if not enlarged:
        return cut
    grain = GRAIN * rng.standard_normal((size[1], size[0], 1), np.float32)
    return Image.fromarray(np.clip(np.asarray(cut) + grain, 0, 255).astype(np.uint8))
