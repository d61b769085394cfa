"""Stages that prove what workers do: answer, refuse, and come through a full GPU; and TorchServe itself."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import workers
from benchmarks.gpu.plan import CLIP, Plan
from benchmarks.gpu.proofs import MODALITIES, check, distance, pictures, sentences, vectors
from benchmarks.gpu.stages import Skipped, Step, WrongError
from clipserve.encoder import ExportedTextEncoder
from clipserve.encoder_spec import (
    PARITY_BOUNDS,
    EncoderSpec,
    Modality,
    Precision,
    decode_vector,
    golden_min_cosine,
)
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import ServerError, SettingsError, SpecError
from clipserve.similarity import cosine
from clipserve.store import EncoderFile
from export_scripts.packages.archive import build_archives
from serving.java import java_home
from serving.server import Server, torchserve

Files = Callable[[], list[EncoderFile]]

# On a GPU that is nearly full: room for some pictures at once, and not for so many.
FEW, MANY = 2, 32
# What fills a GPU to the last byte that PyTorch gives out, in blocks of 512 bytes; what is above 1 MB and
# what is below comes from pools of their own.
FILLING = (64 << 20, (1 << 20) + 512, 16 << 10, 512)

NO_SUCH_GPU = 99

SERVER_SECONDS = 75.0


def answers(plan: Plan) -> Iterator[Step]:
    """Starts a worker of every endpoint in every precision, and asks for golden inputs beside a bad one."""
    for pair, precision, name in product(plan.sizes.pairs, plan.precisions, ENDPOINTS):
        yield f"{pair}.{precision}.{name}", partial(_answered, plan, pair, precision, name)


def _answered(plan: Plan, pair: str, precision: Precision, name: str) -> dict[str, float]:
    endpoint = ENDPOINTS[name]
    files = [plan.file(pair, modality, precision) for modality in endpoint.modalities]
    folder = workers.unpacked(plan.work / "archives" / f"{pair}-{precision}-{name}", files)
    begun = time.monotonic()
    worker = workers.start(name, folder, None if plan.dry else 0)
    ready = time.monotonic() - begun
    first = files[0].spec
    golden: dict[Modality, Any] = {
        modality: [plan.file(pair, modality, precision).spec.certificate.golden.input]
        for modality in MODALITIES
    }
    bad = {
        **golden,
        first.modality: ["no picture" if first.modality == "image" else 7],
    }
    good, refused, again = worker.ask(*map(endpoint.example, (golden, bad, golden)))
    if (good.status, again.status) != (200, 200) or not 400 <= refused.status < 500:
        raise WrongError(
            f"good, bad and good in a batch are answered {good.status}, {refused.status}, {again.status}"
        )
    found = {"ready_s": ready}
    if endpoint.gives_embeddings:
        found["golden_cosine"] = _golden_cosine(again.body["data"][0]["embedding"], first)
    return found


def _golden_cosine(embedding: Sequence[float], spec: EncoderSpec) -> float:
    """Of an answer to the golden input.

    Raises:
        WrongError: it is not the certificate's embedding.
    """
    found = cosine(np.asarray(embedding, np.float32), decode_vector(spec.certificate.golden.embedding))
    if not found >= golden_min_cosine(spec.precision):
        raise WrongError(f"the golden input's embedding has cosine {found:.6f} with the certificate's")
    return found


def refusals(plan: Plan) -> Iterator[Step]:
    """Asks for what must be refused: another device's file, and a GPU that is not there."""
    of_cpu = partial(_text_files, plan, "cpu")
    of_gpu = partial(_text_files, plan, "cuda")
    yield "a CPU's file on a GPU", partial(_refused, plan, of_cpu, 0)
    yield "a GPU's file on a CPU", partial(_refused, plan, of_gpu, None)
    yield "a GPU that is not there", partial(_refused, plan, of_cpu if plan.dry else of_gpu, NO_SUCH_GPU)
    yield "a CPU's file loaded for a GPU", partial(_told, plan, partial(_load_for_gpu, of_cpu))


def _text_files(plan: Plan, device: str) -> list[EncoderFile]:
    if plan.dry and device == "cuda":
        raise Skipped("no file for a GPU can be made on a CPU")
    return [plan.file(CLIP, "text", "fp32", device)]


def _refused(plan: Plan, files: Files, gpu_id: int | None) -> str:
    folder = workers.unpacked(plan.work / "refused" / f"{files()[0].spec.device}-{gpu_id}", files())
    return _told(plan, partial(workers.start, "clip_text", folder, gpu_id))


def _load_for_gpu(files: Files) -> object:
    return ExportedTextEncoder(files()[0].path, torch.device("cuda"))


def _told(plan: Plan, refuse: Callable[[], object]) -> str:
    """What a refusal says.

    Raises:
        WrongError: nothing is refused.
    """
    try:
        refuse()
    except (SpecError, SettingsError) as error:
        return str(error).replace(f"{plan.work}/", "")
    raise WrongError("not refused")


def full_gpu(plan: Plan) -> Iterator[Step]:
    """Leaves a worker less and less memory: first a batch, then not even one picture finds room."""
    if plan.dry:
        yield "all of it", _skip_full_gpu
        return
    file = plan.file(CLIP, "image", "fp16")
    worker = workers.start("clip_image", workers.unpacked(plan.work / "full", [file]), 0)
    picture = file.spec.certificate.golden.input
    yield "a batch that finds no room is halved", partial(_halved, worker, picture)
    yield (
        "a picture that finds none is told 503, and the next is answered",
        partial(_starved, worker, picture),
    )


def _skip_full_gpu() -> None:
    raise Skipped(
        "a CPU has no memory of its own; tests/clipserve/test_out_of_memory.py has a mock of a full GPU"
    )


def _halved(worker: workers.Worker, picture: str) -> dict[str, float]:
    few, idle = _peak(worker, picture, FEW)
    many, _ = _peak(worker, picture, MANY)
    torch.cuda.empty_cache()
    # Room for a few more than a few: the allocator's segments are larger than what lies in them.
    with _at_most(torch.cuda.memory_reserved() + max(2 * few, (few + many) // 2)):
        (answer,) = worker.ask({"input": [picture] * MANY})
        refused = torch.cuda.memory_stats()["num_ooms"]
    embedded = sum(entry["object"] == "embedding" for entry in answer.body.get("data", []))
    if (answer.status, embedded) != (200, MANY):
        raise WrongError(f"answered {answer.status}, {embedded} of {MANY} pictures embedded")
    if not refused:
        raise WrongError(f"{MANY} pictures found room: nothing was shown")
    return {"megabytes_idle": idle / 1e6, "megabytes_wanted": many / 1e6, "allocations_refused": refused}


def _peak(worker: workers.Worker, picture: str, count: int) -> tuple[int, int]:
    """Bytes that a request of so many pictures takes at most, and what the worker has without."""
    torch.cuda.empty_cache()
    idle = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    worker.ask({"input": [picture] * count})
    return torch.cuda.max_memory_allocated() - idle, idle


def _starved(worker: workers.Worker, picture: str) -> dict[str, Any]:
    one: dict[str, list[str]] = {"input": [picture]}
    invalid: dict[str, list[str]] = {"input": []}
    torch.cuda.empty_cache()
    with _at_most(torch.cuda.memory_reserved()):
        taken = _take_all()
        full = worker.ask(one, invalid, one)
        taken.clear()
    (after,) = worker.ask(one)
    statuses = [answer.status for answer in (*full, after)]
    codes = [answer.body["error"]["code"] for answer in full if "error" in answer.body]
    if statuses != [503, 400, 503, 200] or codes[::2] != ["overloaded"] * 2:
        raise WrongError(f"a picture, nothing, a picture, and one with memory again: {statuses} {codes}")
    return {"statuses": statuses, "codes": codes}


@contextlib.contextmanager
def _at_most(allowed: int) -> Iterator[None]:
    """Has PyTorch give out no more than so many bytes of the GPU."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _take_all() -> list[torch.Tensor]:
    """Whatever PyTorch still gives out."""
    taken = []
    for size in FILLING:
        with contextlib.suppress(torch.OutOfMemoryError):
            while True:
                taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    return taken


def by_torchserve(plan: Plan) -> Iterator[Step]:
    """Serves the archives by TorchServe itself, and compares its vectors with the CPU variant's."""
    yield "every endpoint", partial(_by_torchserve, plan)


def _by_torchserve(plan: Plan) -> dict[str, float]:
    if plan.dry:
        raise Skipped("tests/http and tests/full serve by TorchServe on a CPU")
    check_torchserve()
    return served_once(plan, "fp16")


def check_torchserve() -> None:
    """Checks that TorchServe and its archiver are installed, and a Java for it.

    Raises:
        Skipped: they are not.
    """
    programs = (Path(torchserve()), Path(sys.executable).with_name("torch-model-archiver"))
    missing = [program.name for program in programs if not program.is_file()]
    missing += [name for name in ("ts", "tenacity", "httpx") if importlib.util.find_spec(name) is None]
    try:
        java_home()
    except ServerError:
        missing.append("Java")
    if missing:
        raise Skipped(f"not here: {', '.join(missing)}; docs/gpu.md says what to carry along")


def served_once(plan: Plan, precision: Precision) -> dict[str, float]:
    """Starts a server of the measured pair, asks all its endpoints, and stops it.

    Raises:
        WrongError: its vectors are not the CPU variant's.
    """
    store = plan.store(CLIP)
    build_archives(store, None, precision)
    files = [file.data for file in pictures(plan, CLIP)]
    begun = time.monotonic()
    with Server.private(store, SERVER_SECONDS) as server, server.client() as client:
        found = {"ready_s": time.monotonic() - begun}
        given = {"image": client.embed_images(files), "text": client.embed_texts(sentences())}
        client.similarity(files[:1], sentences()[:2])
    for modality in MODALITIES:
        expected = vectors(plan, CLIP, modality, "fp32", "cpu")
        between = distance(given[modality], expected)
        check(between, PARITY_BOUNDS[precision], "the CPU variant")
        found[f"{modality}_min_cosine"] = between["min_cosine"]
    return found
