"""AOTInductor, `.pt2`: what TorchServe runs on CPUs with the instruction sets of this one."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipserve.encoder_spec import Device, Precision
from clipserve.errors import ExportError
from clipserve.hardware import cpu_capability
from clipserve.loading import Module, load_aoti
from export_scripts.formats.base import (
    DTYPES,
    EncoderFormat,
    Inputs,
    ZipFormat,
    export_program,
    quiet_export,
)


class Aoti(ZipFormat):
    """A package compiled by AOTInductor: machine code for this CPU, with the weights inside."""

    doing = "compiling"
    precisions: Mapping[Device, tuple[Precision, ...]] = {"cpu": ("fp32", "bf16"), "cuda": ()}
    candidates = precisions
    libraries: tuple[str, ...] = ()

    options: Mapping[str, Any] = {
        # Weights are packed for oneDNN once, now, and not at every call.
        "freezing": True,
        # The instruction sets of the kernels it writes, which `cpu_capability` names, and no others.
        "cpp.march": "",
        # As many threads as the worker is given, not as this process has.
        "cpp.dynamic_threads": True,
        # Who has inputs checked (AOTI_RUNTIME_CHECK_INPUTS=1) may still embed a batch of one.
        "aot_inductor.check_lowerbound": False,
    }

    def check(self) -> None:
        """A C++ compiler is needed, and a CPU whose instruction sets `cpu_capability` can name."""
        if platform.machine() != "x86_64":
            raise ExportError(
                f"FORMAT=aoti: this machine is {platform.machine()}; compiled packages are made and tried on "
                "x86_64 only; run 'make export' for TorchScript"
            )
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise ExportError(
                "FORMAT=aoti: no C++ compiler here (g++, or what CXX names); install one (on Debian and "
                "Ubuntu: apt-get install g++), or run 'make export' for TorchScript, which needs none"
            ) from error

    def cpu_capability(self) -> str:
        """This CPU's: the compiler makes code for the machine that it runs on."""
        return cpu_capability()

    def make(self, encoder: nn.Module, precision: Precision, inputs: Inputs, path: Path) -> None:
        """Exports with dynamic sizes and compiles."""
        from torch._inductor import aoti_compile_and_package
        from torch._inductor.utils import fresh_cache

        with quiet_export(), fresh_cache(dir=str(path.parent)):
            program = export_program(encoder.to(DTYPES[precision]), inputs)
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=dict(self.options))

    def load(self, path: Path, device: torch.device) -> Module:
        """`aoti_load_package`."""
        return load_aoti(path, device)


FORMAT: EncoderFormat = Aoti()
