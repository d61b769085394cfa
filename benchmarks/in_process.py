"""What runs in process, without a server: sentence-transformers, and OpenVINO as the ceiling.

A child of `benchmarks.compare`: it is told once what to load (`{"load": …}`), and then asked to measure
(`{"seconds": …}`) in every round.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from PIL import Image

from benchmarks.child import Job, Result, answer_jobs
from benchmarks.timing import in_turns, timed
from benchmarks.usage import resident_megabytes
from benchmarks.workloads import SMALLEST, TEXTS_AT_ONCE, sentences
from clipserve.hardware import cpu_has_native_bf16
from clipserve.images import ImageLimits, decode_image, preprocess
from export_scripts.checkpoints.loading import load_pair

AT_ONCE = 32  # pictures or texts of a batch


class SentenceTransformers:
    """The originals, as their users call them; from the files' bytes on."""

    def __init__(self, clip: Path, text: Path, pictures: Mapping[str, Sequence[Path]]):
        from sentence_transformers import SentenceTransformer

        self._image = SentenceTransformer(str(clip), device="cpu", local_files_only=True)
        self._text = SentenceTransformer(str(text), device="cpu", local_files_only=True)
        self._pictures = pictures
        self._sentences = sentences()

    def facts(self) -> Result:
        """The embedding of the first of the smallest pictures."""
        return {"reference": self._embed(self._pictures[SMALLEST][:1])[0].tolist()}

    def measure(self, seconds: float) -> Result:
        """Pictures and texts, alone and in batches."""

        def images(key: str, count: int) -> dict[str, float]:
            return timed(lambda n: self._embed(in_turns(self._pictures[key], count, n)), count, seconds)

        def texts(count: int) -> dict[str, float]:
            return timed(lambda n: self._encode(in_turns(self._sentences, count, n)), count, seconds)

        return {
            "image": images("0.3 MP", AT_ONCE),
            "image_alone": images("0.3 MP", 1),
            "image_2mp": images("2 MP", 8),
            "image_12mp": images("12 MP", 8),
            "text_batch32": texts(TEXTS_AT_ONCE),
            "text_alone": texts(1),
        }

    def _embed(self, paths: Sequence[Path]) -> Any:
        pictures = [Image.open(path).convert("RGB") for path in paths]
        return self._image.encode(pictures, batch_size=AT_ONCE, show_progress_bar=False)

    def _encode(self, texts: Sequence[str]) -> Any:
        return self._text.encode(list(texts), batch_size=AT_ONCE, show_progress_bar=False)


class OpenVino:
    """Our encoder modules, converted and run by OpenVINO; ready pixels and tokens, nothing is decoded."""

    STREAMS = 2

    def __init__(self, clip: Path, text: Path, pictures: Mapping[str, Sequence[Path]]):
        import openvino

        self._openvino = openvino
        pair = load_pair(str(clip), str(text))
        limits = ImageLimits()
        image = decode_image(pictures[SMALLEST][0].read_bytes(), limits)
        self._pixels = preprocess(image, pair.image.preprocessing, limits)[None]
        self.precision = "bf16" if cpu_has_native_bf16() else "f32"
        with torch.no_grad():
            model = openvino.convert_model(
                pair.image.build(True), example_input=torch.from_numpy(self._pixels)
            )
        model.reshape([1, *self._pixels.shape[1:]])
        core = openvino.Core()
        precision = {"INFERENCE_PRECISION_HINT": self.precision}
        self._quick = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **precision})
        streams = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(self.STREAMS)}
        self._many = core.compile_model(model, "CPU", {**streams, **precision})

    def facts(self) -> Result:
        """Precision, and how it is run."""
        return {"precision": self.precision, "streams": self.STREAMS}

    def measure(self, seconds: float) -> Result:
        """Batch 1, in latency mode one after the other, and in throughput mode on all streams."""
        request = self._quick.create_infer_request()
        queue = self._openvino.AsyncInferQueue(self._many)
        several = 4 * self.STREAMS

        def together(number: int) -> None:
            for _ in range(several):
                queue.start_async(self._pixels)
            queue.wait_all()

        return {
            "image_alone": timed(lambda n: request.infer(self._pixels), 1, seconds),
            "image": timed(together, several, seconds),
        }


KINDS: dict[str, type[SentenceTransformers | OpenVino]] = {
    "sentence-transformers": SentenceTransformers,
    "openvino": OpenVino,
}


def main() -> int:
    """Answers jobs until standard input ends."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    runner: SentenceTransformers | OpenVino | None = None

    def answer(job: Job) -> Result:
        nonlocal runner
        if "load" in job:
            pictures = {key: [Path(p) for p in paths] for key, paths in job["pictures"].items()}
            runner = KINDS[job["load"]](Path(job["clip"]), Path(job["text"]), pictures)
            return runner.facts()
        assert runner is not None
        measured = runner.measure(job["seconds"])
        return {**measured, "rss_mb": resident_megabytes([psutil.Process(os.getpid())])}

    return answer_jobs(answer)


if __name__ == "__main__":
    sys.exit(main())
