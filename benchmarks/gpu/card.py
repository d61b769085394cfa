"""Stage: the machine and its card, and the ceilings that everything else is a share of."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from typing import Any

import psutil
import torch

from benchmarks.gpu.plan import Plan
from benchmarks.gpu.stages import Skipped, Step
from clipserve.encoder_spec import Precision
from export_scripts.formats.base import DTYPES

VERSIONS = ("torch", "transformers", "sentence-transformers", "tokenizers", "pillow", "numpy", "orjson")

WARM_UP = 3
BYTES = 1 << 28  # that are copied


def card(plan: Plan) -> Iterator[Step]:
    """What runs here, the rate of its matrix products, and of its copies."""
    yield "machine", partial(_machine, plan)
    yield "driver", partial(_driver, plan)
    for precision in DTYPES:
        yield f"product.{precision}", partial(_product, plan, precision)
    yield "copies", partial(_copies, plan)


def _machine(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = {
        "cores": plan.cores,
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "versions": {name: metadata.version(name) for name in VERSIONS}
        | {"torch": torch.__version__, "python": platform.python_version()},
    }
    if plan.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "card": properties.name,
            "cards": torch.cuda.device_count(),
            "card_memory_gb": properties.total_memory / 1e9,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def _driver(plan: Plan) -> str:
    program = shutil.which("nvidia-smi")
    if plan.dry or program is None:
        raise Skipped("no GPU is asked" if plan.dry else "no nvidia-smi on PATH")
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    return told.stdout.split()[0]


def synchronize(plan: Plan) -> None:
    """Waits until the device has done what it was given."""
    if plan.device == "cuda":
        torch.cuda.synchronize()


def seconds_per_call(plan: Plan, run: Callable[[], object], seconds: float) -> float:
    """Mean seconds of calls that are not waited for one by one; warm already, they take about `seconds`."""
    synchronize(plan)
    begin = time.perf_counter()
    run()
    synchronize(plan)
    calls = max(2, int(seconds / (time.perf_counter() - begin)))
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(plan)
    return (time.perf_counter() - begin) / calls


def _measured(plan: Plan, run: Callable[[], object]) -> float:
    for _ in range(WARM_UP):
        run()
    return seconds_per_call(plan, run, plan.sizes.seconds)


def _product(plan: Plan, precision: Precision) -> dict[str, float]:
    """TFLOP/s of one square product of random matrices."""
    edge = plan.sizes.product
    a, b = (torch.randn(edge, edge, device=plan.device, dtype=DTYPES[precision]) for _ in range(2))
    with torch.inference_mode():
        seconds = _measured(plan, partial(torch.matmul, a, b))
    return {"tflops": 2 * edge**3 / seconds / 1e12}


def _copies(plan: Plan) -> dict[str, float]:
    """GB/s: within the card (bytes read and written), and to it from ordinary and from pinned memory."""
    if plan.dry:
        raise Skipped("nothing is copied to a CPU")
    there = torch.empty(BYTES, dtype=torch.uint8, device="cuda")
    again = torch.empty_like(there)
    here = torch.randint(0, 256, (BYTES,), dtype=torch.uint8)
    pinned = here.pin_memory()
    within = _measured(plan, partial(again.copy_, there))
    ordinary = _measured(plan, partial(there.copy_, here))
    from_pinned = _measured(plan, partial(there.copy_, pinned, non_blocking=True))
    return {
        "within_gb_s": 2 * BYTES / within / 1e9,
        "ordinary_gb_s": BYTES / ordinary / 1e9,
        "pinned_gb_s": BYTES / from_pinned / 1e9,
    }
