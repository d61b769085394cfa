"""Compares variants of a pair on retrieval and zero-shot, beside the original: `make evaluate`.

By default the demo's pair on 200 fresh scenes in 40 languages; else on your own pictures: a CSV file with the
columns picture, caption and perhaps language, or a folder whose folders are labels.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from PIL import Image, ImageOps

from benchmarks.evaluate import report, tasks
from benchmarks.evaluate.scores import Vectors, least_cosine, main_score, means, scores
from benchmarks.evaluate.tasks import TEMPLATE, Task
from clipserve.arguments import Parser, path
from clipserve.command import run_command
from clipserve.cost import Budget
from clipserve.embedders import Embedder, ImageEmbedder, TextEmbedder
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import PARITY_BOUNDS, FloatArray
from clipserve.errors import RequestError, SettingsError
from clipserve.settings import Settings
from clipserve.store import EncoderFile, Store
from clipserve.wire.messages import Embedded
from export_scripts.checkpoints.loading import load_pair
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.parity.subjects import SUBJECTS
from export_scripts.publish import export_encoders

OUTPUT = Path(".bench") / "evaluate"
RESULTS, PLOT = "evaluation.json", "evaluation.png"

ItemT = TypeVar("ItemT")

AT_ONCE = 32
NO_HURRY = 1e9  # seconds


def evaluate(pair: CheckpointPair, task: Task, store: Path) -> report.Results:
    """Compares every variant in a folder that runs on this CPU, and the original, on a task.

    Raises:
        ClipServeError: there is no variant, one is of another checkpoint, or a picture cannot be read.
    """
    # First, so that nobody waits for the original to be told that there is nothing to compare.
    compared = list(variants(pair, store))
    print(f"{task.what}: the original", flush=True)
    original = _by_original(pair, task)
    found: dict[str, Vectors] = {report.ORIGINAL: original}
    for image, text in compared:
        plain = image.spec.format == "torchscript"
        name = image.spec.precision if plain else f"{image.spec.precision}, {image.spec.format}"
        print(f"{task.what}: {name}", flush=True)
        found[name] = _by_variant(image, text, task)
    by_variant: dict[str, dict[str, Any]] = {}
    for name, vectors in found.items():
        by_group = scores(task, vectors, original)
        by_variant[name] = {"mean": means(by_group), "by_group": by_group}
        if name != report.ORIGINAL:
            by_variant[name]["least_cosine"] = least_cosine(vectors, original)
    return {
        "model": pair.model_id,
        "what": task.what,
        "groups": "language" if len(task.groups) > 1 else "group",
        "main": main_score(by_variant[report.ORIGINAL]["by_group"]),
        "variants": by_variant,
    }


def variants(pair: CheckpointPair, store: Path) -> Iterator[tuple[EncoderFile, EncoderFile]]:
    """Image and text encoders of one format and precision for this CPU.

    Raises:
        SettingsError: there is none of this pair.
    """
    mine = Store.read(store).where(lambda spec: (spec.space_id, spec.device) == (pair.space_id, "cpu"))
    by_name: dict[tuple[str, str], dict[str, EncoderFile]] = {}
    for file in mine.encoders:
        if file.runs_here():
            by_name.setdefault((file.spec.format, file.spec.precision), {})[file.spec.modality] = file
    complete = [(files["image"], files["text"]) for files in by_name.values() if len(files) == len(SUBJECTS)]
    if not complete:
        raise SettingsError(
            f"{store}: no pair of encoders of {pair.model_id} (space {pair.space_id}) for this CPU there, "
            f"only {Store.read(store).names or 'none at all'}; run 'make export', or leave STORE out"
        )
    order = list(PARITY_BOUNDS)
    yield from sorted(complete, key=lambda files: order.index(files[0].spec.precision))


def _by_original(pair: CheckpointPair, task: Task) -> Vectors:
    pictures = np.concatenate(
        [pair.image.reference([_opened(data) for data in some]) for some in _chunks(task.pictures)]
    )
    texts = {
        name: np.concatenate([pair.text.reference_encode(some) for some in _chunks(group.texts)])
        for name, group in task.groups.items()
    }
    return Vectors(pictures, texts)


def _opened(data: bytes) -> Image.Image:
    """Through Pillow alone; turned as the file says, which originals leave to their callers."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data)))


def _chunks(items: Sequence[ItemT]) -> Iterator[Sequence[ItemT]]:
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]


def _by_variant(image: EncoderFile, text: EncoderFile, task: Task) -> Vectors:
    settings, cpu = Settings(), torch.device("cpu")
    images = ImageEmbedder(ExportedImageEncoder(image.path, cpu), settings)
    texts = TextEmbedder(ExportedTextEncoder(text.path, cpu), settings)
    return Vectors(
        _embedded(images, task.pictures),
        {name: _embedded(texts, group.texts) for name, group in task.groups.items()},
    )


def _embedded(embedder: Embedder[ItemT], items: Sequence[ItemT]) -> FloatArray:
    """Vectors of items as a worker makes them.

    Raises:
        SettingsError: of an item that has none.
    """
    results = embedder(list(items), Budget.of(NO_HURRY))
    for number, result in enumerate(results, 1):
        if isinstance(result, RequestError):
            raise SettingsError(f"item {number} of {len(items)} has no embedding: {result.message}")
    return np.stack([result.embedding for result in results if isinstance(result, Embedded)])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = Parser(
        prog="python -m benchmarks.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="demo", help="the pair, as for make export (demo)")
    parser.add_argument("--text-model", help="its text encoder, likewise")
    parser.add_argument("--store", type=path, help="folder of its variants; else all precisions are exported")
    parser.add_argument("--images", type=path, help="captions.csv, or a folder whose folders are labels")
    parser.add_argument("--template", default=TEMPLATE, help=f"for labels ({TEMPLATE})")
    parser.add_argument("--output", type=path, default=OUTPUT, help=f"folder of table and plot ({OUTPUT})")
    arguments = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def work() -> None:
        task = tasks.demo() if arguments.images is None else tasks.read(arguments.images, arguments.template)
        arguments.output.mkdir(parents=True, exist_ok=True)
        pair = load_pair(arguments.model, arguments.text_model)
        with tempfile.TemporaryDirectory(prefix="clipserve-evaluate-") as folder:
            store = arguments.store
            if store is None:
                store = Path(folder)
                for precision in PARITY_BOUNDS:
                    print(f"exporting {pair.model_id} in {precision}", flush=True)
                    export_encoders(pair, list(SUBJECTS), "cpu", precision, store)
            found = evaluate(pair, task, store)
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        (arguments.output / RESULTS).write_text(text, encoding="utf-8")
        report.draw(found, arguments.output / PLOT)
        print(f"\n{report.table(found)}")
        print("\n".join(report.weak(found)) or "no group is weak, and none is weakened")
        print(f"{arguments.output / RESULTS}, {arguments.output / PLOT}")

    return run_command("evaluate", work)


if __name__ == "__main__":
    sys.exit(main())
