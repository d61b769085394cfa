"""What a run does: full size on a GPU, or the same tiny on a CPU so that nothing here rots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clipserve.encoder_spec import Device, Modality, Precision
from clipserve.hardware import usable_cores
from clipserve.store import EncoderFile, Store
from standins import checkpoints

# The pair that is measured; both are proven.
CLIP, SIGLIP_2 = "clip", "siglip2"

Write = Callable[[Path], tuple[Path, Path]]


@dataclass(frozen=True)
class Sizes:
    """How large stand-ins and measurements are.

    Attributes:
        pairs: what writes the checkpoints of each pair into a folder: those of images and of texts.
        batches: of the encoder alone.
        seconds: of a measurement, in each of `rounds`.
        embedded: pictures, and texts, of one end-to-end measurement.
        lone: requests of one measurement of latency.
        pictures: different ones.
        product: rows and columns of the matrices whose product rates are shares of.
    """

    pairs: Mapping[str, Write]
    batches: tuple[int, ...]
    seconds: float
    rounds: int
    embedded: int
    lone: int
    pictures: int
    product: int


def _clip(clip: checkpoints.ClipShape, text: checkpoints.TextShape) -> Write:
    return lambda folder: (
        checkpoints.write_clip(folder / "clip-ViT-B-32", clip),
        checkpoints.write_multilingual(folder / "clip-ViT-B-32-multilingual-v1", text),
    )


def _siglip_2(shape: checkpoints.ClipShape) -> Write:
    def write(folder: Path) -> tuple[Path, Path]:
        both = checkpoints.write_siglip(folder / "siglip2-base-patch16-224", checkpoints.SIGLIP_2, shape)
        return both, both

    return write


FULL = Sizes(
    pairs={
        CLIP: _clip(checkpoints.VIT_B_32, checkpoints.DISTILBERT_MULTILINGUAL),
        SIGLIP_2: _siglip_2(checkpoints.SIGLIP_2_B_16),
    },
    batches=(1, 8, 32, 256, 1024),
    seconds=0.15,
    rounds=3,
    embedded=1024,
    lone=200,
    pictures=32,
    product=8192,
)
TINY = Sizes(
    pairs={
        CLIP: _clip(checkpoints.TINY_CLIP, checkpoints.TINY_TEXT),
        SIGLIP_2: _siglip_2(checkpoints.TINY_SIGLIP),
    },
    batches=(1, 8),
    seconds=0.01,
    rounds=1,
    embedded=8,
    lone=3,
    pictures=2,
    product=64,
)


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        dry: on a CPU, tiny.
        work: where everything is written that is not kept.
        cores: that decode.
    """

    dry: bool
    work: Path
    cores: int = field(default_factory=usable_cores)

    @property
    def sizes(self) -> Sizes:
        """How large everything is."""
        return TINY if self.dry else FULL

    @property
    def device(self) -> Device:
        """What is exported for, and measured."""
        return "cpu" if self.dry else "cuda"

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What the exporter has for a GPU, the fastest first; a CPU has both as well."""
        return ("fp16", "fp32")

    def checkpoints(self, pair: str) -> Path:
        """Folder of a pair's checkpoints."""
        return self.work / pair / "checkpoints"

    def folders(self, pair: str) -> tuple[Path, Path]:
        """The checkpoints of images and of texts, which the stage before has written."""
        folders = sorted(self.checkpoints(pair).iterdir())
        return folders[0], folders[-1]

    @property
    def jpegs(self) -> Path:
        """Folder of the pictures that are measured with, which the first stage writes."""
        return self.work / "pictures"

    def store(self, pair: str) -> Path:
        """Where a pair's encoders are exported to."""
        return self.work / pair / "store"

    def file(
        self, pair: str, modality: Modality, precision: Precision, device: str | None = None
    ) -> EncoderFile:
        """An encoder that a stage before has exported; for the plan's device where none is named.

        Raises:
            LookupError: it has not.
        """
        wanted = (modality, precision, device or self.device)
        found = Store.read(self.store(pair)).where(lambda s: (s.modality, s.precision, s.device) == wanted)
        if not found.encoders:
            raise LookupError(f"no {' '.join(wanted)} encoder of {pair}: its export failed")
        return found.encoders[0]
