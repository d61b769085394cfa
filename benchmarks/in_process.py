"""sentence-transformers without a server: the originals, as their users call them.

A child of `benchmarks.compare`: it is told once what to load (`{"load": …}`), asked for vectors that others
are compared with (`{"embed": …}`), and then for a measurement at a time (`{"measure": …}`) in every round.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import transformers
from PIL import Image

from benchmarks.child import Job, Result, answer_jobs
from benchmarks.timing import in_turns, timed
from benchmarks.usage import resident_megabytes
from benchmarks.workloads import TEXTS_AT_ONCE, sentences

AT_ONCE = 32  # pictures or texts of a batch


class SentenceTransformers:
    """Pictures and texts, alone and in batches; from the files' bytes on.

    Attributes:
        measurements: by their names; each takes how many seconds.
    """

    def __init__(self, clip: Path, text: Path, pictures: Mapping[str, Sequence[Path]]):
        from sentence_transformers import SentenceTransformer

        self._image = SentenceTransformer(str(clip), device="cpu", local_files_only=True)
        self._text = SentenceTransformer(str(text), device="cpu", local_files_only=True)
        self._pictures = pictures
        self._sentences = sentences()
        self.measurements: dict[str, Callable[[float], dict[str, float]]] = {
            "image": lambda seconds: self._images("0.3 MP", AT_ONCE, seconds),
            "image_alone": lambda seconds: self._images("0.3 MP", 1, seconds),
            "image_2mp": lambda seconds: self._images("2 MP", 8, seconds),
            "image_12mp": lambda seconds: self._images("12 MP", 8, seconds),
            "text_batch32": lambda seconds: self._texts(TEXTS_AT_ONCE, seconds),
            "text_alone": lambda seconds: self._texts(1, seconds),
        }

    def embed_images(self, paths: Sequence[Path | str]) -> Any:
        """Normalised vectors of picture files, float32 `[N, D]`."""
        pictures = [Image.open(path).convert("RGB") for path in paths]
        return self._image.encode(
            pictures, batch_size=AT_ONCE, show_progress_bar=False, normalize_embeddings=True
        )

    def embed_texts(self, texts: Sequence[str]) -> Any:
        """The same of texts."""
        return self._text.encode(
            list(texts), batch_size=AT_ONCE, show_progress_bar=False, normalize_embeddings=True
        )

    def _images(self, key: str, count: int, seconds: float) -> dict[str, float]:
        return timed(lambda n: self.embed_images(in_turns(self._pictures[key], count, n)), count, seconds)

    def _texts(self, count: int, seconds: float) -> dict[str, float]:
        return timed(lambda n: self.embed_texts(in_turns(self._sentences, count, n)), count, seconds)


def main() -> int:
    """Answers jobs until standard input ends."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    originals: SentenceTransformers | None = None

    def answer(job: Job) -> Result:
        nonlocal originals
        if "clip" in job:
            pictures = {key: [Path(p) for p in paths] for key, paths in job["pictures"].items()}
            originals = SentenceTransformers(Path(job["clip"]), Path(job["text"]), pictures)
            return {"measurements": list(originals.measurements)}
        assert originals is not None
        if "embed" in job:
            return {
                "image": originals.embed_images(job["embed"]).tolist(),
                "text": originals.embed_texts(sentences()).tolist(),
            }
        measured = originals.measurements[job["measure"]](job["seconds"])
        return {**measured, "rss_mb": resident_megabytes([psutil.Process(os.getpid())])}

    return answer_jobs(answer)


if __name__ == "__main__":
    sys.exit(main())
