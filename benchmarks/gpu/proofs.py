"""Stages that prove what is exported: checkpoints, exports, and parity on the device itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from benchmarks.gpu.originals import Original, SentenceTransformers, Siglip2, exact_float32
from benchmarks.gpu.plan import CLIP, Plan
from benchmarks.gpu.stages import Step, WrongError
from clipserve.certificate import ParityBound
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import PARITY_BOUNDS, Device, FloatArray, Modality, Precision
from clipserve.images import decode_image, preprocess
from clipserve.settings import Settings
from clipserve.similarity import unit_vectors
from export_scripts.checkpoints.loading import load_pair
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.parity.inputs import SENTENCES, PictureFile, photograph_like, picture_files
from export_scripts.publish import export_encoder
from standins.tokenizers import corpus

MODALITIES: tuple[Modality, ...] = get_args(Modality)

JPEG_SIZE = (640, 480)  # pixels
JPEG_QUALITY = 90

PHRASES = 64  # of the 40 languages, beside what breaks tokenizers

# Of two devices in float32: each adds in another order, and is within the original's bound.
BETWEEN_DEVICES = ParityBound(max_abs_diff=2e-5, min_cosine=None)


def checkpoints(plan: Plan) -> Iterator[Step]:
    """Writes the stand-ins: checkpoints, and pictures to measure with."""
    for pair, write in plan.sizes.pairs.items():
        yield pair, partial(_written, plan.checkpoints(pair), write)
    yield "pictures", partial(_written, plan.jpegs, partial(_write_jpegs, plan.sizes.pictures))


def _write_jpegs(count: int, folder: Path) -> None:
    """Files with the spectrum of photographs."""
    rng = np.random.default_rng(0)
    for number in range(count):
        photograph_like(rng, *JPEG_SIZE).save(folder / f"{number:03d}.jpg", quality=JPEG_QUALITY)


def _written(folder: Path, write: Callable[[Path], object]) -> dict[str, float]:
    folder.mkdir(parents=True)
    write(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {"megabytes": sum(path.stat().st_size for path in files) / 1e6}


def export(plan: Plan) -> Iterator[Step]:
    """Exports every encoder for the device in each precision, and for the CPU in fp32; each proves itself."""
    variants: list[tuple[Device, Precision]] = [(plan.device, precision) for precision in plan.precisions]
    if plan.device != "cpu":
        variants.append(("cpu", "fp32"))
    for pair in plan.sizes.pairs:
        loaded = cache(partial(load, plan, pair))
        for modality, (device, precision) in product(MODALITIES, variants):
            exported = partial(_exported, loaded, plan.store(pair), modality, device, precision)
            yield f"{pair}.{modality}.{device}-{precision}", exported


def load(plan: Plan, pair: str) -> CheckpointPair:
    """The checkpoints of a pair, with their originals on the CPU."""
    image, text = plan.folders(pair)
    return load_pair(str(image), str(text))


def _exported(
    loaded: Callable[[], CheckpointPair],
    store: Path,
    modality: Modality,
    device: Device,
    precision: Precision,
) -> dict[str, float]:
    spec = export_encoder(loaded(), modality, device, precision, store)
    return {
        "megabytes": (store / spec.file_name).stat().st_size / 1e6,
        "max_abs_diff": spec.certificate.max_abs_diff,
        "min_cosine": spec.certificate.min_cosine,
    }


def parity(plan: Plan) -> Iterator[Step]:
    """Compares with the original on the same device, and with the variant for the CPU."""
    exact_float32()
    for pair in plan.sizes.pairs:
        original = cache(partial(_original, plan, pair))
        for modality, precision in product(MODALITIES, plan.precisions):
            yield (
                f"{pair}.{modality}.{precision}",
                partial(_compared, plan, pair, modality, precision, original),
            )


def _compared(
    plan: Plan, pair: str, modality: Modality, precision: Precision, original: Callable[[], Original]
) -> dict[str, Any]:
    ours = vectors(plan, pair, modality, precision, plan.device)
    if modality == "image":
        theirs = original().pictures([file.original for file in pictures(plan, pair)])
    else:
        theirs = original().texts(sentences())
    found: dict[str, Any] = {"items": len(ours), "original": distance(ours, theirs)}
    check(found["original"], PARITY_BOUNDS[precision], "the original on the same device")
    if plan.device != "cpu":
        bound = BETWEEN_DEVICES if precision == "fp32" else PARITY_BOUNDS[precision]
        found["cpu_variant"] = distance(ours, vectors(plan, pair, modality, "fp32", "cpu"))
        check(found["cpu_variant"], bound, "the CPU variant")
    return found


def _original(plan: Plan, pair: str) -> Original:
    if pair == CLIP:
        return SentenceTransformers(plan, exact=True)
    file = plan.file(pair, "text", "fp32")
    return Siglip2(plan, pair, ExportedTextEncoder(file.path, torch.device(plan.device)).tokenizer)


@cache
def pictures(plan: Plan, pair: str) -> list[PictureFile]:
    """Files of the kinds that a server decodes each in its own way, and what the original gets of them."""
    spec = plan.file(pair, "image", "fp32").spec
    assert spec.image is not None
    return picture_files(11, spec.image.shortest_edge, Settings().draft_factor)


def sentences() -> list[str]:
    """Raw sentences: what breaks tokenizers, and some of each language."""
    phrases = corpus()
    return [*SENTENCES, *phrases[:: len(phrases) // PHRASES]]


def vectors(plan: Plan, pair: str, modality: Modality, precision: Precision, device: Device) -> FloatArray:
    """Embeddings of `pictures` or `sentences` by an exported encoder, prepared as a worker does."""
    path = plan.file(pair, modality, precision, device).path
    if modality == "image":
        images = ExportedImageEncoder(path, torch.device(device))
        return images.embed([_pixels(file.data, images) for file in pictures(plan, pair)])
    texts = ExportedTextEncoder(path, torch.device(device))
    return texts.embed(*texts.tokenizer.pad([texts.tokenizer.tokenize(text).ids for text in sentences()]))


def _pixels(data: bytes, encoder: ExportedImageEncoder) -> Any:
    settings, preprocessing = Settings(), encoder.preprocessing
    image = decode_image(
        data,
        settings.images,
        shortest_edge=preprocessing.shortest_edge,
        draft_factor=settings.draft_factor,
    )
    return preprocess(image, preprocessing, settings.images)


def distance(ours: FloatArray, theirs: Sequence[Any] | FloatArray) -> dict[str, float]:
    """How far unit vectors are from others."""
    a, b = (unit_vectors(np.asarray(x, np.float32)).astype(np.float64) for x in (ours, theirs))
    if a.shape != b.shape:
        raise WrongError(f"{a.shape} beside {b.shape}")
    cosines = (a * b).sum(1)
    return {
        "max_abs_diff": float(np.abs(a - b).max()),
        "min_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
    }


def check(found: dict[str, float], bound: ParityBound, other: str) -> None:
    """Holds a distance to its bound; NaN is beyond it.

    Raises:
        WrongError: it is not within.
    """
    if not bound.holds(found["max_abs_diff"], found["min_cosine"], found["mean_cosine"]):
        raise WrongError(
            f"from {other}: max-abs {found['max_abs_diff']:.3g}, min cosine {found['min_cosine']:.6f}; the "
            f"bound is {bound}"
        )
