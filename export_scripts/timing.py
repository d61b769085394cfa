"""Times one encoder file in several workers at once; prints items per second by batch size, as JSON.

A program of its own, since each worker starts by importing what started it, and this is light.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from clipserve.command import run_command
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import read_spec

BATCHES = (1, 2, 4, 8, 16, 32)
TEXT_TOKENS = 16  # of a caption in the 40 languages, about
ROUNDS = 3

_embed: Callable[[int], object]
_together: threading.Barrier


def loaded(path: Path) -> Callable[[int], object]:
    """An encoder that has proved itself, as a function that embeds a batch of so many items.

    Raises:
        SpecError: see `ExportedImageEncoder` and `ExportedTextEncoder`.
    """
    spec = read_spec(path)
    device = torch.device(spec.device)
    if spec.image is not None:
        images = ExportedImageEncoder(path, device)
        shape = (3, spec.image.crop_height, spec.image.crop_width)
        pixels = list(np.random.default_rng(0).integers(0, 256, (max(BATCHES), *shape), dtype=np.uint8))
        return lambda batch: images.embed(pixels[:batch])
    texts = ExportedTextEncoder(path, device)
    golden = texts.tokenizer.tokenize(spec.certificate.golden.input).ids
    ids, mask = texts.tokenizer.pad([np.resize(golden, TEXT_TOKENS).tolist()] * max(BATCHES))
    return lambda batch: texts.embed(ids[:batch], mask[:batch])


def _start(path: Path, threads: int, together: threading.Barrier) -> None:
    global _embed, _together
    torch.set_num_threads(threads)
    _embed, _together = loaded(path), together


def _rate(batch: int, seconds: float) -> float:
    """Items per second of this worker, while the others run too."""
    _together.wait()
    passes, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds or not passes:
        _embed(batch)
        passes += 1
    return batch * passes / spent


def time_batches(path: Path, workers: int, threads: int, seconds: float) -> dict[int, list[float]]:
    """Items per second of all workers together, by batch size, in `ROUNDS` interleaved rounds."""
    context = multiprocessing.get_context("spawn")
    rates: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    with ProcessPoolExecutor(workers, context, _start, (path, threads, context.Barrier(workers))) as pool:
        for _ in range(ROUNDS):
            for batch in BATCHES:
                jobs = [pool.submit(_rate, batch, seconds) for _ in range(workers)]
                rates[batch].append(sum(job.result() for job in jobs))
    return rates


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m export_scripts.timing", description=__doc__)
    parser.add_argument("path", type=Path, help="an encoder file")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    arguments = parser.parse_args(argv)

    def measure() -> None:
        # Here first: what is wrong with it is told once, in one line.
        loaded(arguments.path)
        print(
            json.dumps(time_batches(arguments.path, arguments.workers, arguments.threads, arguments.seconds))
        )

    return run_command("timing", measure)


if __name__ == "__main__":
    sys.exit(main())
