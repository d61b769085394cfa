"""Kinds of x86 CPUs, by the instructions that multiply: each has those of the kinds before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AVX2, VNNI, AMX = "AVX2", "AVX512-VNNI", "AMX"
OF_KIND = {
    AMX: {"amx_int8", "amx_bf16"},
    # Every CPU with AVX512-BF16 has VNNI.
    VNNI: {"avx512_vnni", "avx_vnni", "avx512_bf16"},
}
KINDS = (AVX2, VNNI, AMX)


def kind_of(machine: Mapping[str, Any]) -> str:
    """The kind of a machine's CPU: one of `KINDS`."""
    found = set(machine["instructions"])
    return next((kind for kind, instructions in OF_KIND.items() if instructions & found), AVX2)
