"""int8 beside float32, half weights and ONNX Runtime's int8, the encoder alone: `python -m benchmarks.int8`.

Full-size checkpoints with seeded random weights, one thread. Each engine is a process of its own, since idle
threads of one double the times of another in the same process; they take turns in short slices, and what
counts is the CPU time of a pass, so that other work on the machine weighs on all alike. On a CPU with AVX512
PyTorch also runs as if it had AVX2 alone. Writes `results/int8.json`, and from it tables of
docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks import figures, ratios
from benchmarks.child import Child, Job, Result, answer_jobs
from clipserve import prepack
from clipserve.command import run_command
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import Format, Modality, Precision
from clipserve.hardware import cpu_capability
from clipserve.memory import bound_free_memory
from export_scripts.checkpoints.loading import load_pair
from export_scripts.encoders.int8 import COARSE_LEVELS
from export_scripts.publish import export_encoder
from standins.checkpoints import DISTILBERT_MULTILINGUAL, VIT_B_32, write_clip, write_multilingual

CPU = torch.device("cpu")
MODALITIES: tuple[Modality, ...] = ("image", "text")
VARIANTS: tuple[tuple[Format, Precision], ...] = (
    ("torchscript", "fp32"),
    ("torchscript", "fp16"),
    ("torchscript", "int8"),
    ("onnx", "fp32"),
)

BATCHES = (1, 8)
TOKENS = 24  # length of the timed texts
SLICE_SECONDS = 0.4  # CPU
LEAST_PASSES = 2

CHILD = "CLIPSERVE_INT8_CHILD"

# What PyTorch's own kernels, oneDNN and MKL obey; FBGEMM is told by `_fbgemm_as_avx2`.
AVX2_ALONE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def engines(modality: Modality, store: Path) -> dict[str, tuple[Job, Mapping[str, str]]]:
    """What is timed of an encoder: for each its first job, and what it finds in its environment."""
    found: dict[str, tuple[Job, Mapping[str, str]]] = {}

    def add(name: str, path: Path, avx2: bool) -> None:
        job = {"path": str(path), "modality": modality, "avx2": avx2}
        found[name] = job, {CHILD: "1", **(AVX2_ALONE if avx2 else {})}

    for avx2 in (False, True) if torch.cpu.get_capabilities().get("avx512_f") else (False,):
        for precision in ("fp32", "fp16", "int8"):
            path = next(store.glob(f"*-{modality}-cpu-{precision}.pt"))
            add(f"{precision}{', AVX2' if avx2 else ''}", path, avx2)
    plain = next(store.glob(f"*-{modality}-cpu-fp32.onnx"))
    add("ONNX Runtime fp32", plain, False)
    quantized = store / f"{modality}-quantized.onnx"
    if not quantized.is_file():
        # Part of the environment for exports to ONNX.
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(plain, quantized, per_channel=True, weight_type=QuantType.QInt8)
    add("ONNX Runtime int8", quantized, False)
    return found


def measure(store: Path, modality: Modality, rounds: int) -> list[dict[str, Any]]:
    """CPU milliseconds of a pass of every engine and batch size, in turns."""
    with contextlib.ExitStack() as stack:
        running = {}
        for name, (job, environment) in engines(modality, store).items():
            running[name] = stack.enter_context(Child("benchmarks.int8", 1, environment))
            running[name].ask(job)
        times: dict[tuple[int, str], list[float]] = {}
        for batch in BATCHES:
            for number in range(rounds):
                for name in sorted(running, reverse=bool(number % 2)):
                    spent = running[name].ask({"batch": batch})["cpu_ms"]
                    times.setdefault((batch, name), []).append(spent)
    return [
        {
            "modality": modality,
            "batch": batch,
            "engine": name,
            "median": statistics.median(spent),
            "least": min(spent),
            "most": max(spent),
        }
        for (batch, name), spent in times.items()
    ]


def serve() -> int:
    """The side of a child: loads an encoder with its first job, and times passes with each that follows."""
    torch.set_num_threads(1)
    bound_free_memory()
    embed: Callable[[int], object] | None = None

    def answer(job: Job) -> Result:
        nonlocal embed
        if "path" in job:
            if job["avx2"]:
                _fbgemm_as_avx2()
            embed = _embedding(Path(job["path"]), job["modality"], avx2=job["avx2"])
            return {}
        assert embed is not None
        return {"cpu_ms": _pass_ms(embed, job["batch"])}

    return answer_jobs(answer)


def _fbgemm_as_avx2() -> None:
    """Has FBGEMM multiply as where there is AVX2 alone: `fbgemmForceIsa(inst_set_t::avx2)`."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    ctypes.CDLL(str(library))["_ZN6fbgemm14fbgemmForceIsaENS_10inst_set_tE"](1)


def _embedding(path: Path, modality: Modality, *, avx2: bool) -> Callable[[int], object]:
    """An encoder as a function that embeds a batch of so many pictures or texts."""
    rng = np.random.default_rng(0)
    most = max(BATCHES)
    pixels = rng.integers(0, 256, (most, 3, 224, 224), dtype=np.uint8)
    ids = rng.integers(1000, 5000, (most, TOKENS), dtype=np.int64)
    mask = np.ones_like(ids)
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        if modality == "image":
            return lambda batch: session.run(None, {"pixel_values": pixels[:batch]})
        return lambda batch: session.run(None, {"input_ids": ids[:batch], "attention_mask": mask[:batch]})
    if avx2:
        # What a worker finds out by itself on such a CPU.
        vars(prepack)["int8_levels"] = lambda: COARSE_LEVELS
    if modality == "image":
        images = ExportedImageEncoder(path, CPU)
        return lambda batch: images.embed(list(pixels[:batch]))
    texts = ExportedTextEncoder(path, CPU)
    return lambda batch: texts.embed(ids[:batch], mask[:batch])


def _pass_ms(embed: Callable[[int], object], batch: int) -> float:
    # What the others' turns have driven out of the caches comes back with it.
    embed(batch)
    spent: list[float] = []
    while sum(spent) < SLICE_SECONDS or len(spent) < LEAST_PASSES:
        start = time.process_time()
        embed(batch)
        spent.append(time.process_time() - start)
    return 1000 * statistics.median(spent)


def _export(store: Path, work: Path) -> None:
    clip = write_clip(work / "clip-ViT-B-32", VIT_B_32)
    pair = load_pair(str(clip), str(write_multilingual(work / "multilingual", DISTILBERT_MULTILINGUAL)))
    for modality in MODALITIES:
        for format, precision in VARIANTS:
            spec = export_encoder(pair, modality, "cpu", precision, store, file_format=format)
            print(f"{spec.file_name}: {spec.certificate}", flush=True)


def _compare(store: Path | None, rounds: int) -> None:
    loads = [os.getloadavg()[0]]
    times: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="clipserve-int8-") as name:
        if store is None:
            store = Path(name) / "store"
            _export(store, Path(name))
        for modality in MODALITIES:
            times += measure(store, modality, rounds)
            loads.append(os.getloadavg()[0])
    results = {
        "cpu": cpu_capability(),
        "torch": torch.__version__,
        "rounds": dict.fromkeys(MODALITIES, rounds),
        "load_averages": loads,
        "times": times,
    }
    ratios.write(results, figures.INT8)
    figures.write_pages()
    print(figures.int8())


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8", description=__doc__)
    parser.add_argument("--store", type=Path, help="that holds the encoders already, full size, all of them")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return run_command("int8", lambda: _compare(arguments.store, arguments.rounds))


if __name__ == "__main__":
    # `Child` gives a process nothing on its command line.
    sys.exit(serve() if CHILD in os.environ else main())
