"""Stages: what a caller gets, from bytes and raw sentences on: throughput, latency, memory."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu import workers
from benchmarks.gpu.originals import SentenceTransformers
from benchmarks.gpu.plan import CLIP, Plan
from benchmarks.gpu.stages import Skipped, Step
from benchmarks.timing import in_turns
from clipserve.cost import Budget
from clipserve.embedders import ImageEmbedder, TextEmbedder
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import Modality, Precision
from clipserve.endpoints import ENDPOINTS
from clipserve.images import PixelArray, decode_image, preprocess
from clipserve.preprocessing import ImagePreprocessing
from clipserve.settings import Settings
from standins.tokenizers import corpus

LONE_TEXTS = 32

BATCH = 256  # of a forward pass
# Of what others decode in one thread, so many times less is embedded: a rate is wanted, not an evening.
ONE_THREAD = 4

NO_HURRY = 600.0  # seconds

CHUNKS = 4  # that each decoding process gets


@cache
def _jpegs(plan: Plan) -> list[bytes]:
    return [path.read_bytes() for path in sorted(plan.jpegs.iterdir())]


def end_to_end(plan: Plan) -> Iterator[Step]:
    """Pictures from JPEG bytes and texts from sentences, in turns with sentence-transformers there."""
    yield "pictures", partial(_pictures, plan)
    yield "texts", partial(_texts, plan)


def _pictures(plan: Plan) -> dict[str, Any]:
    many, files = plan.sizes.embedded, _jpegs(plan)
    spec = plan.file(CLIP, "image", "fp16").spec
    assert spec.image is not None
    with ExitStack() as stack:
        # Forked before there is a GPU in this process; each has its work before the first is measured.
        pool = ProcessPoolExecutor(plan.cores, get_context("fork"))
        stack.enter_context(pool)
        decode = partial(_decoded, spec.image, Settings())
        chunk = max(1, many // (CHUNKS * plan.cores))
        list(pool.map(decode, files[:1] * plan.cores))
        encoder = ExportedImageEncoder(plan.file(CLIP, "image", "fp16").path, torch.device(plan.device))
        embedder = ImageEmbedder(encoder, Settings(threads=plan.cores, max_batch=BATCH))
        exact = SentenceTransformers(plan, exact=False)
        half = SentenceTransformers(plan, exact=False)
        if not plan.dry:
            half.half()

        def by_processes(count: int) -> object:
            pixels = list(pool.map(decode, in_turns(files, count, 0), chunksize=chunk))
            return [encoder.embed(pixels[i : i + BATCH]) for i in range(0, count, BATCH)]

        def theirs(model: SentenceTransformers, count: int) -> object:
            pictures = [_opened(data) for data in in_turns(files, count, 0)]
            return model.pictures(pictures, BATCH)

        few = max(1, many // ONE_THREAD)
        return _rates(
            plan,
            {
                "ours_threads": (many, lambda n: embedder(in_turns(files, n, 0), Budget.of(NO_HURRY))),
                "ours_processes": (many, by_processes),
                "sentence_transformers_fp32": (few, partial(theirs, exact)),
                "sentence_transformers_fp16": (few, partial(theirs, half)),
            },
        )


def _opened(data: bytes) -> Image.Image:
    """As a user of sentence-transformers opens it."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def _decoded(preprocessing: ImagePreprocessing, settings: Settings, data: bytes) -> PixelArray:
    image = decode_image(
        data,
        settings.images,
        shortest_edge=preprocessing.shortest_edge,
        draft_factor=settings.draft_factor,
        color=settings.color,
    )
    return preprocess(image, preprocessing, settings.images)


def _texts(plan: Plan) -> dict[str, Any]:
    many = plan.sizes.embedded
    encoder = ExportedTextEncoder(plan.file(CLIP, "text", "fp16").path, torch.device(plan.device))
    embedder = TextEmbedder(encoder, Settings(threads=plan.cores, max_batch=BATCH))
    exact, half = SentenceTransformers(plan, exact=False), SentenceTransformers(plan, exact=False)
    if not plan.dry:
        half.half()
    sentences = corpus()
    return _rates(
        plan,
        {
            "ours": (many, lambda n: embedder(in_turns(sentences, n, 0), Budget.of(NO_HURRY))),
            "sentence_transformers_fp32": (many, lambda n: exact.texts(in_turns(sentences, n, 0), BATCH)),
            "sentence_transformers_fp16": (many, lambda n: half.texts(in_turns(sentences, n, 0), BATCH)),
        },
    )


def _rates(plan: Plan, runs: Mapping[str, tuple[int, Callable[[int], object]]]) -> dict[str, Any]:
    """Items per second of each, in turns, after a turn that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + plan.sizes.rounds):
        for name, (count, run) in runs.items():
            begin = time.perf_counter()
            run(count)
            rates[name].append(count / (time.perf_counter() - begin))
    return {
        name: {"rate": statistics.median(of[1:]), "least": min(of[1:]), "most": max(of[1:])}
        for name, of in rates.items()
    }


def latency(plan: Plan) -> Iterator[Step]:
    """One request after the other: through a worker, the encoder alone, and sentence-transformers."""
    for modality in ("image", "text"):
        yield f"{modality}.worker", partial(_worker_latency, plan, modality)
        yield f"{modality}.encoder", partial(_encoder_latency, plan, modality)
        yield f"{modality}.sentence_transformers", partial(_their_latency, plan, modality)


def _times(plan: Plan, run: Callable[[int], object]) -> dict[str, float]:
    """p50 and p99 of as many calls as the plan says."""
    for warm in range(3):
        run(warm)
    times = []
    for number in range(plan.sizes.lone):
        begin = time.perf_counter()
        run(number)
        times.append(1000 * (time.perf_counter() - begin))
    p50, p99 = np.quantile(times, (0.5, 0.99))
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def _worker_latency(plan: Plan, modality: Modality) -> dict[str, float]:
    name = f"clip_{modality}"
    file = plan.file(CLIP, modality, "fp16")
    folder = workers.unpacked(plan.work / "latency" / name, [file])
    worker = workers.start(name, folder, None if plan.dry else 0)
    requests: Sequence[Any] = _jpegs(plan) if modality == "image" else _requests()
    return _times(plan, lambda n: worker.ask(requests[n % len(requests)]))


def _requests() -> list[Any]:
    return [ENDPOINTS["clip_text"].example({"text": [text]}) for text in corpus()[:LONE_TEXTS]]


def _encoder_latency(plan: Plan, modality: Modality) -> dict[str, float]:
    path, device = plan.file(CLIP, modality, "fp16").path, torch.device(plan.device)
    if modality == "text":
        texts = ExportedTextEncoder(path, device)
        ids = [texts.tokenizer.pad([texts.tokenizer.tokenize(text).ids]) for text in corpus()[:LONE_TEXTS]]
        return _times(plan, lambda n: texts.embed(*ids[n % len(ids)]))
    images = ExportedImageEncoder(path, device)
    pixels = [_decoded(images.preprocessing, Settings(), data) for data in _jpegs(plan)]
    return _times(plan, lambda n: images.embed([pixels[n % len(pixels)]]))


def _their_latency(plan: Plan, modality: Modality) -> dict[str, float]:
    model = SentenceTransformers(plan, exact=False)
    if modality == "text":
        texts = corpus()[:LONE_TEXTS]
        return _times(plan, lambda n: model.texts([texts[n % len(texts)]]))
    files = _jpegs(plan)
    return _times(plan, lambda n: model.pictures([_opened(files[n % len(files)])]))


def memory(plan: Plan) -> Iterator[Step]:
    """What an encoder takes of the GPU, by precision and batch."""
    for modality in ("image", "text"):
        for precision in plan.precisions:
            yield f"{modality}.{precision}", partial(_memory, plan, modality, precision)


def _memory(plan: Plan, modality: Modality, precision: Precision) -> dict[str, float]:
    """Megabytes that PyTorch has given out at most, and what the process takes of the card beside."""
    if plan.dry:
        raise Skipped("a CPU has no memory of its own")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    path, device = plan.file(CLIP, modality, precision).path, torch.device("cuda", 0)
    encoder = ExportedImageEncoder(path, device) if modality == "image" else ExportedTextEncoder(path, device)
    found = {"loaded_mb": (torch.cuda.memory_allocated() - before) / 1e6}
    for batch in plan.sizes.batches:
        torch.cuda.reset_peak_memory_stats()
        if isinstance(encoder, ExportedImageEncoder):
            spec = encoder.preprocessing
            encoder.embed(list(np.zeros((batch, 3, spec.crop_height, spec.crop_width), np.uint8)))
        else:
            encoder.embed(*encoder.tokenizer.pad([[10] * 16] * batch))
        found[f"batch_{batch}_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    free, total = torch.cuda.mem_get_info()
    found["card_in_use_mb"] = (total - free) / 1e6
    found["reserved_mb"] = torch.cuda.memory_reserved() / 1e6
    return found
