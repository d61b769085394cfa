"""What the machine and the encoders can do in process: the floors and limits that ratios refer to.

A child of `benchmarks.compare`, told once what to load (`{"load": …}`), then asked to measure in every round:
once alone on the machine, and once beside as many others as there are cores, since cores share memory, cache
and clock.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch

from benchmarks.child import Job, Result, answer_jobs
from benchmarks.timing import LEAST_RUNS, in_turns, timed
from benchmarks.workloads import SIZES, SMALLEST, TEXTS_AT_ONCE, sentences
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import Modality, Precision
from clipserve.images import ImageLimits, PixelArray, decode_image, preprocess
from clipserve.store import Store
from export_scripts.timing import loaded

BATCH = 8

# Of the arithmetic: with half weights it is float32's.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float32}

CPU = torch.device("cpu")


class Floors:
    """The encoders of a store, the pictures and sentences, and matrices of the image encoder's shapes.

    Args:
        products: `[rows, columns]` of a vision transformer layer's weights.
        tokens: of one picture.
        flops: of one picture in the whole encoder.
        threads: of an image worker.
    """

    def __init__(
        self,
        store: Path,
        pictures: Mapping[str, Sequence[Path]],
        products: Sequence[tuple[int, int]],
        tokens: int,
        flops: float,
        threads: int,
    ):
        torch.set_num_threads(1)
        self._store = Store.read(store).model(None)
        image, text = self._store.pair(CPU.type)
        self._image = ExportedImageEncoder(image.path, CPU)
        self._text = ExportedTextEncoder(text.path, CPU)
        self._files = {key: [path.read_bytes() for path in paths] for key, paths in pictures.items()}
        self._pixels = [self._decode(data) for data in self._files[SMALLEST]]
        self._sentences = sentences()
        generator = torch.Generator().manual_seed(0)
        self._matrices_fp32 = [
            (
                torch.randn(BATCH * tokens, rows, generator=generator),
                torch.randn(rows, columns, generator=generator),
            )
            for rows, columns in products
        ]
        dtype = DTYPES[self._image.spec.precision]
        self._matrices = [(a.to(dtype), b.to(dtype)) for a, b in self._matrices_fp32]
        self._flops = flops
        self._threads = threads

    def facts(self) -> Result:
        """What was loaded."""
        return {"image": self._image.spec.stem, "text": self._text.spec.stem}

    def together(self, seconds: float) -> Result:
        """What is asked of every core at once."""
        model = timed(lambda n: self._image.embed(in_turns(self._pixels, BATCH, n)), BATCH, seconds)
        return {
            "model_batch8": model,
            "model_gflops": model["rate"] * self._flops / 1e9,
            "gemm_gflops": _gflops(self._matrices, seconds),
            "pipeline_batch8": timed(self._pipeline, BATCH, seconds),
            "text_batch32": timed(self._embed_texts, TEXTS_AT_ONCE, seconds),
        }

    def alone(self, seconds: float) -> Result:
        """All of that, and what a lone request waits for."""
        found = self.together(seconds)
        found["gemm_fp32_gflops"] = _gflops(self._matrices_fp32, seconds)
        for key in SIZES:
            files = self._files[key]
            found[f"decode_{key}"] = timed(lambda n, f=files: self._decode(f[n % len(f)]), 1, seconds / 2)  # type: ignore[misc]
        torch.set_num_threads(self._threads)
        found["forward_batch1"] = timed(lambda n: self._image.embed(in_turns(self._pixels, 1, n)), 1, seconds)
        found["text_alone"] = timed(lambda n: self._embed(in_turns(self._sentences, 1, n)), 1, seconds / 2)
        torch.set_num_threads(1)
        found["half_weights"] = self._half_weights(seconds)
        return found

    def _half_weights(self, seconds: float) -> dict[str, dict[str, float]]:
        """CPU time of a lone picture and a lone text in fp32 and with half weights, where the store has both.

        Loaded for as long as it is measured: the process has a pair of encoders already.
        """
        wanted: tuple[Precision, ...] = ("fp32", "fp16")
        served = self._store.where(lambda spec: (spec.device, spec.format) == ("cpu", "torchscript"))
        found = {}
        for modality in get_args(Modality):
            files = {f.spec.precision: f.path for f in served.encoders if f.spec.modality == modality}
            if set(wanted) <= set(files):
                runs = {precision: loaded(files[precision]) for precision in wanted}
                found[modality] = _lone_passes(runs, seconds)
        return found

    def _decode(self, data: bytes) -> PixelArray:
        limits = ImageLimits()
        return preprocess(decode_image(data, limits), self._image.preprocessing, limits)

    def _pipeline(self, number: int) -> None:
        self._image.embed([self._decode(data) for data in in_turns(self._files[SMALLEST], BATCH, number)])

    def _embed_texts(self, number: int) -> None:
        self._embed(in_turns(self._sentences, TEXTS_AT_ONCE, number))

    def _embed(self, texts: Sequence[str]) -> None:
        tokenizer = self._text.tokenizer
        self._text.embed(*tokenizer.pad([tokenizer.tokenize(text).ids for text in texts]))


def _gflops(matrices: Sequence[tuple[torch.Tensor, torch.Tensor]], seconds: float) -> float:
    """Rate at which each of the pairs is multiplied once."""

    def multiply(number: int) -> None:
        with torch.inference_mode():
            for activations, weight in matrices:
                torch.matmul(activations, weight)

    flops = sum(2.0 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in matrices)
    return timed(multiply, 1, seconds)["rate"] * flops / 1e9


def _lone_passes(runs: Mapping[Precision, Callable[[int], object]], seconds: float) -> dict[str, float]:
    """Median CPU time of a lone input's pass in each precision, in turns: other work weighs on all alike."""
    times: dict[Precision, list[float]] = {precision: [] for precision in runs}
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or min(map(len, times.values())) < LEAST_RUNS:
        for precision, run in runs.items():
            before = time.process_time()
            run(1)
            times[precision].append(time.process_time() - before)
    return {f"{precision}_cpu_ms": 1000 * statistics.median(spent) for precision, spent in times.items()}


def main() -> int:
    """Answers jobs until standard input ends."""
    floors: Floors | None = None

    def answer(job: Job) -> Result:
        nonlocal floors
        if "store" in job:
            pictures = {key: [Path(p) for p in paths] for key, paths in job["pictures"].items()}
            floors = Floors(
                Path(job["store"]), pictures, job["products"], job["tokens"], job["flops"], job["threads"]
            )
            return floors.facts()
        assert floors is not None
        return floors.alone(job["seconds"]) if job["alone"] else floors.together(job["seconds"])

    return answer_jobs(answer)


if __name__ == "__main__":
    sys.exit(main())
