"""One engine with one encoder, alone: a child of `benchmarks.engines`.

It is told what to load (`{"load": …}`), then asked to time passes (`{"time": …}`), or how near its vectors
are to the original's and to their own in company (`{"judge": true}`). The engines themselves, and why what
they need is not imported here, are in `benchmarks.engine_kinds`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.child import Job, Result, answer_jobs
from benchmarks.engine_kinds import BATCH, KINDS, Arrays, Engine, Ours
from benchmarks.usage import resident_megabytes

LEAST_PASSES = 2


class Inputs:
    """What `benchmarks.engines` has written for a modality.

    Args:
        folder: `arrays.npz` (`timed` and `judged` pixels or ids, `reference` vectors), `raw.json`.
    """

    def __init__(self, folder: Path, modality: str, *, raw: bool):
        self._arrays = dict(np.load(folder / "arrays.npz"))
        self._raw: dict[str, Any] = {}
        self._modality = modality
        if raw:
            self._raw = json.loads((folder / "raw.json").read_text(encoding="utf-8"))
            if modality == "image":
                self._raw = {key: [_picture(path) for path in paths] for key, paths in self._raw.items()}
        self.reference = self._arrays["reference"]

    def timed(self, batch: int) -> Arrays:
        """A batch that is timed."""
        return self._some("timed", 0, batch)

    def judged(self, first: int, count: int) -> Arrays:
        """Some of those whose reference there is."""
        return self._some("judged", first, count)

    def sentences(self) -> list[Arrays]:
        """The sentences of the comparison over HTTP, each alone at its own length."""
        lengths = self._arrays["lengths"]
        return [
            {"ids": ids[None, :length], "mask": np.ones((1, length), np.int64)}
            for ids, length in zip(self._arrays["sentences"], lengths, strict=True)
        ]

    def _some(self, which: str, first: int, count: int) -> Arrays:
        part = slice(first, first + count)
        if self._modality == "image":
            found: Arrays = {
                "pixels": self._arrays[which][part],
                "shape": (count, int(self._arrays["tokens"])),
            }
        else:
            ids = self._arrays[which][part]
            found = {"ids": ids, "mask": self._arrays[f"{which}_mask"][part], "shape": ids.shape}
        if self._raw:
            found["raw"] = self._raw[which][part]
            if self._modality == "text":
                found["tokens"] = int(self._arrays[which].shape[1])
        return found


def _picture(path: str) -> Any:
    from PIL import Image

    return Image.open(path).convert("RGB")


def time_passes(embed: Callable[[Arrays], object], given: Sequence[Arrays], seconds: float) -> Result:
    """Median milliseconds of a pass, by the clock and of CPU, over inputs in turns."""
    # What the others' turns have driven out of the caches comes back with it.
    embed(given[0])
    wall: list[float] = []
    cpu: list[float] = []
    while sum(wall) < seconds or len(wall) < LEAST_PASSES:
        begin, spent = time.perf_counter(), time.process_time()
        embed(given[len(wall) % len(given)])
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - spent)
    return {"ms": 1000 * statistics.median(wall), "cpu_ms": 1000 * statistics.median(cpu)}


def judge(embed: Callable[[Arrays], Any], inputs: Inputs) -> Result:
    """How far vectors are from the original's, and from themselves in company.

    Returns:
        `cosine_distance`: 1 - the least cosine, of each alone. `moved_by_neighbours`: the most by which a
        number of a normalised vector differs in a batch.
    """
    count = len(inputs.reference) // BATCH * BATCH
    alone = np.concatenate([embed(inputs.judged(number, 1)) for number in range(count)])
    together = np.concatenate([embed(inputs.judged(first, BATCH)) for first in range(0, count, BATCH)])
    alone, together = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (alone, together))
    cosines = (alone.astype(np.float64) * inputs.reference[:count]).sum(1)
    return {
        "cosine_distance": float(1 - cosines.min()),
        "moved_by_neighbours": float(np.abs(alone - together).max()),
    }


def main() -> int:
    """Answers jobs until standard input ends."""
    engine: Engine | None = None
    inputs: Inputs | None = None

    def answer(job: Job) -> Result:
        nonlocal engine, inputs
        if "load" in job:
            if isinstance(engine, Ours):
                engine.use_threads(job["threads"])
            else:
                # What was loaded for another number of threads goes first.
                engine = None
                engine = KINDS[job["load"]](job)
            raw = job["load"] == "sentence-transformers"
            inputs = inputs or Inputs(Path(job["inputs"]), job["modality"], raw=raw)
            for batch in (1, BATCH):
                engine.embed(inputs.timed(batch))
            return {"settings": engine.settings()}
        assert engine is not None
        assert inputs is not None
        if job.get("judge"):
            return judge(engine.embed, inputs)
        given = inputs.sentences() if job["time"] == "sentences" else [inputs.timed(job["time"])]
        found = time_passes(engine.embed, given, job["seconds"])
        return {**found, "rss_mb": resident_megabytes([psutil.Process(os.getpid())])}

    return answer_jobs(answer)


if __name__ == "__main__":
    sys.exit(main())
