"""Every format and precision beside each other, full size: `python -m benchmarks.formats`.

Full-size checkpoints (ViT-B/32 and the multilingual DistilBERT's shape) with seeded random weights, one
thread. What is timed is the CPU time of a call, in turns over all files, so that other work on the machine
weighs on all alike and waiting for a core does not count. Writes `results/formats.json`, and from it the
table of docs/formats.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from benchmarks import figures, results_file
from clipserve.command import run_command
from clipserve.encoder_spec import EncoderSpec, Format, Modality, Precision
from clipserve.loading import Module
from export_scripts.checkpoints.loading import load_pair
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.formats import FORMATS
from export_scripts.publish import export_encoder
from standins.checkpoints import write_pair

VARIANTS: tuple[tuple[Format, Precision], ...] = (
    ("torchscript", "fp32"),
    ("torchscript", "bf16"),
    ("torchscript", "fp16"),
    ("onnx", "fp32"),
    ("aoti", "bf16"),
    ("aoti", "fp32"),
)
BATCHES = (1, 8)
TOKENS = 16  # length of the timed texts
WARM_UP = 3  # calls; the first two are TorchScript's profiling executor's


@dataclass
class Measured:
    """What was measured of one file.

    Attributes:
        milliseconds: CPU time of a call by batch size, one entry for each round.
    """

    spec: EncoderSpec
    export_seconds: float
    megabytes: float
    milliseconds: dict[int, list[float]] = field(default_factory=dict)


def inputs(spec: EncoderSpec, batch: int) -> tuple[Tensor, ...]:
    """Noise of the encoder's size, or texts of `TOKENS` tokens."""
    rng = np.random.default_rng(batch)
    if spec.image is not None:
        size = (batch, 3, spec.image.crop_height, spec.image.crop_width)
        return (torch.from_numpy(rng.integers(0, 256, size, dtype=np.uint8)),)
    ids = torch.from_numpy(rng.integers(10, 500, (batch, TOKENS), dtype=np.int64))
    return ids, torch.ones_like(ids)


def measure(pair: CheckpointPair, modality: Modality, store: Path, rounds: int) -> list[Measured]:
    """Exports one encoder in every variant and times them in turns."""
    measured: list[Measured] = []
    runs: list[Module] = []
    for format, precision in VARIANTS:
        start = time.perf_counter()
        spec = export_encoder(pair, modality, "cpu", precision, store, file_format=format)
        seconds = time.perf_counter() - start
        path = store / spec.file_name
        measured.append(Measured(spec, seconds, path.stat().st_size / 1e6))
        runs.append(FORMATS[format].load(path, torch.device("cpu")))
        print(f"{spec.file_name}: exported and proven in {seconds:.0f} s", flush=True)
    with torch.inference_mode():
        for batch in BATCHES:
            given = inputs(measured[0].spec, batch)
            for run in runs:
                for _ in range(WARM_UP):
                    run(*given)
            for _ in range(rounds):
                for entry, run in zip(measured, runs, strict=True):
                    start = time.process_time()
                    run(*given)
                    spent = 1000 * (time.process_time() - start)
                    entry.milliseconds.setdefault(batch, []).append(spent)
    return measured


def collect(measured: Sequence[Measured], rounds: int, loads: Sequence[float]) -> results_file.Results:
    """What `results/formats.json` holds."""
    return {
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "rounds": rounds,
        "tokens": TOKENS,
        "load_averages": list(loads),
        "files": [
            {
                "modality": entry.spec.modality,
                "format": entry.spec.format,
                "precision": entry.spec.precision,
                "megabytes": entry.megabytes,
                "max_abs_diff": entry.spec.certificate.max_abs_diff,
                "min_cosine": entry.spec.certificate.min_cosine,
                "export_s": entry.export_seconds,
                "cpu_ms": {
                    str(batch): {"median": statistics.median(times), "least": min(times), "most": max(times)}
                    for batch, times in entry.milliseconds.items()
                },
            }
            for entry in measured
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--tiny", action="store_true", help="tiny checkpoints, and the table printed only")
    arguments = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    return run_command("formats", lambda: _compare(arguments.rounds, arguments.tiny))


def _compare(rounds: int, tiny: bool) -> None:
    loads = [os.getloadavg()[0]]
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="clipserve-formats-") as name:
        work = Path(name)
        clip, text = write_pair(work, tiny=tiny)
        pair = load_pair(str(clip), str(text))
        modalities: tuple[Modality, ...] = ("image", "text")
        for modality in modalities:
            measured += measure(pair, modality, work / "store", rounds)
            loads.append(os.getloadavg()[0])
    results = collect(measured, rounds, loads)
    print(figures.formats_text(results))
    if not tiny:
        results_file.write(results, figures.FORMATS)
        figures.write_pages()


if __name__ == "__main__":
    sys.exit(main())
