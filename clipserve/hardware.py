"""What this machine can run, and run fast."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from clipserve.encoder_spec import EncoderSpec, Precision
from clipserve.errors import SpecError

# What AOTInductor chooses its code by, and oneDNN the layout of packed weights; names of
# `torch.cpu.get_capabilities`.
INSTRUCTION_SETS = (
    "avx2",
    "fma3",
    "avx512_f",
    "avx512_bw",
    "avx512_dq",
    "avx512_vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
)


# Of a container with cgroup version 2: how much time of all cores it may take in each period, both in µs.
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")

# Of a signed byte, on either side of zero.
EXACT_LEVELS = 127


def usable_cores() -> int:
    """Cores that this process can keep busy: those that it may run on, fewer where its container has less."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):
        # No such file, or no quota, which is spelled `max`.
        return allowed


def cpu_capability() -> str:
    """This CPU's architecture and instruction sets, such as `x86_64 avx2 fma3 avx512_f avx512_bf16`."""
    has = torch.cpu.get_capabilities()
    return " ".join([platform.machine(), *(name for name in INSTRUCTION_SETS if has.get(name))])


def check_cpu(path: Path, spec: EncoderSpec) -> None:
    """Checks that this CPU has what the machine code in an encoder file uses.

    Raises:
        SpecError: it lacks something.
    """
    here = cpu_capability().split()
    lacking = [name for name in (spec.cpu_capability or "").split() if name not in here]
    if lacking:
        raise SpecError(
            f"{path}: compiled for a CPU with {spec.cpu_capability}, this one ({' '.join(here)}) lacks "
            f"{', '.join(lacking)}; run 'make export FORMAT=aoti' on this machine, or 'make export', whose "
            "files run on any CPU"
        )


def cpu_has_native_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX512-BF16 or AMX); emulated bf16 is slow."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def cpu_has_half_weights() -> bool:
    """Whether FBGEMM multiplies by weights in half precision here, for which it needs AVX2."""
    return torch.backends.quantized.engine in ("x86", "fbgemm")


def int8_levels() -> int | None:
    """How many levels of an activation on either side of zero FBGEMM multiplies exactly; None: it runs not.

    Before AVX512-VNNI two products of bytes are added in 16 bits, which saturate: 2 · 127 · 127 fits there,
    2 · 255 · 127 does not. FBGEMM takes activations without sign, so that the first is 63 levels.
    """
    if not cpu_has_half_weights():
        return None
    return EXACT_LEVELS if torch.cpu.get_capabilities().get("avx512_vnni") else 63


def cpu_has_int8_tiles() -> bool:
    """Whether oneDNN multiplies bytes with AMX here, which takes half the time of FBGEMM's product."""
    return torch.backends.mkldnn.is_available() and bool(torch.cpu.get_capabilities().get("amx_int8"))


def native_precisions(device: str) -> tuple[Precision, ...]:
    """What a device multiplies in hardware, the fastest first; any other precision is emulated, slowly.

    int8 is in none: it costs more of a vector than others do, so that it is taken where it was asked for.
    """
    if device == "cuda":
        return "fp16", "fp32"
    bf16: tuple[Precision, ...] = ("bf16",) if cpu_has_native_bf16() else ()
    fp16: tuple[Precision, ...] = ("fp16",) if cpu_has_half_weights() else ()
    return *bf16, *fp16, "fp32"
