"""What the machine and the encoders can do in process: the floors and limits that ratios refer to.

A child of `benchmarks.compare`, told once what to load (`{"store": …}`), then asked for a measurement at a
time in every round: alone on the machine, and some beside as many others as there are cores, since cores
share memory, cache and clock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.child import Job, Result, answer_jobs
from benchmarks.timing import in_turns, timed
from benchmarks.workloads import SIZES, SMALLEST, TEXTS_AT_ONCE, sentences
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.images import ImageLimits, PixelArray, decode_image, preprocess
from clipserve.store import Store

BATCH = 8

# Of the arithmetic: with half weights it is float32's.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float32}

CPU = torch.device("cpu")


class Floors:
    """The encoders of a store, the pictures and sentences, and matrices of the image encoder's shapes.

    Args:
        products: `[rows, columns]` of a vision transformer layer's weights.
        tokens: of one picture.
        threads: of an image worker.

    Attributes:
        together: measurements that are asked of every core at once, too, by name; each takes how many
            seconds.
        alone: what a lone request waits for.
    """

    def __init__(
        self,
        store: Path,
        pictures: Mapping[str, Sequence[Path]],
        products: Sequence[tuple[int, int]],
        tokens: int,
        threads: int,
    ):
        torch.set_num_threads(1)
        image, text = Store.read(store).model(None).pair(CPU.type)
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
        self._threads = threads
        self.together: dict[str, Callable[[float], Any]] = {
            "model_batch8": self._model,
            "gemm_gflops": lambda seconds: _gflops(self._matrices, seconds),
            "pipeline_batch8": lambda seconds: timed(self._pipeline, BATCH, seconds),
            "text_batch32": lambda seconds: timed(self._embed_texts, TEXTS_AT_ONCE, seconds),
        }
        self.alone = self._alone()

    def facts(self) -> Result:
        """What was loaded, what can be measured, and what a picture takes in the encoder."""
        return {
            "encoders": {"image": self._image.spec.stem, "text": self._text.spec.stem},
            "together": list(self.together),
            "alone": list(self.alone),
        }

    def _alone(self) -> dict[str, Callable[[float], Any]]:
        return {
            "gemm_fp32_gflops": lambda seconds: _gflops(self._matrices_fp32, seconds),
            **{f"decode_{key}": partial(self._decoding, key) for key in SIZES},
            "forward_batch1": lambda seconds: self._lone(
                lambda n: self._image.embed(in_turns(self._pixels, 1, n)), seconds
            ),
            "text_alone": lambda seconds: self._lone(
                lambda n: self._embed(in_turns(self._sentences, 1, n)), seconds
            ),
        }

    def _decoding(self, key: str, seconds: float) -> dict[str, float]:
        files = self._files[key]
        return timed(lambda n: self._decode(files[n % len(files)]), 1, seconds / 2)

    def _lone(self, run: Callable[[int], object], seconds: float) -> dict[str, float]:
        """With a worker's threads."""
        torch.set_num_threads(self._threads)
        try:
            return timed(run, 1, seconds)
        finally:
            torch.set_num_threads(1)

    def _model(self, seconds: float) -> dict[str, float]:
        return timed(lambda n: self._image.embed(in_turns(self._pixels, BATCH, n)), BATCH, seconds)

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


def main() -> int:
    """Answers jobs until standard input ends."""
    floors: Floors | None = None

    def answer(job: Job) -> Result:
        nonlocal floors
        if "store" in job:
            pictures = {key: [Path(p) for p in paths] for key, paths in job["pictures"].items()}
            floors = Floors(Path(job["store"]), pictures, job["products"], job["tokens"], job["threads"])
            return floors.facts()
        assert floors is not None
        found = {**floors.together, **floors.alone}[job["measure"]](job["seconds"])
        return found if isinstance(found, dict) else {"value": found}

    return answer_jobs(answer)


if __name__ == "__main__":
    sys.exit(main())
