"""Loads encoder files, a function a format; that it is the right one is `clipserve.encoder`'s to prove."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from clipserve.encoder_spec import Format
from clipserve.errors import SpecError
from clipserve.mapping import map_large_weights
from clipserve.operators import check_operators, check_records
from clipserve.prepack import prepack_linear_layers

# A loaded encoder: its inputs, on its device, to float32 `[N, D]`.
Module = Callable[..., torch.Tensor]


def load_for_inference(
    path: Path, device: torch.device, int8_levels: int | None = None
) -> torch.jit.ScriptModule:
    """Loads a traced encoder; it cannot be saved again.

    Where it runs on a CPU, its layers' weights are packed, and its tables stay in the file.

    Args:
        int8_levels: see `prepack_linear_layers`.

    Raises:
        SpecError: it holds what no encoder has, see `clipserve.operators`.
    """
    module = _load_unchecked(path, device)
    if device.type == "cpu":
        # Before the graph is read as a whole, which compiles the layers' own as it finds them.
        prepack_linear_layers(module, int8_levels)
        map_large_weights(path, module)
    check_operators(path, module)
    return module


def load_torchscript(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    """Loads a traced encoder as it was saved.

    Raises:
        SpecError: it holds what no encoder has, see `clipserve.operators`.
    """
    module = _load_unchecked(path, device)
    check_operators(path, module)
    return module


def _load_unchecked(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    """`torch.jit.load` without its deprecation warning; what the module calls has not been looked at."""
    check_records(path)
    with warnings.catch_warnings():
        # torch.jit is past its end of maintenance, which the README says once for all its calls.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)")
        module: torch.jit.ScriptModule = torch.jit.load(str(path), map_location=device)
    return module


def load_aoti(path: Path, device: torch.device) -> Module:
    """Loads a package compiled by AOTInductor; needs no compiler.

    It runs where it was compiled for. PyTorch unpacks it into a folder under the system's folder for
    temporary files, and removes that with the module.

    Raises:
        SpecError: this PyTorch cannot load it.
    """
    # Takes seconds, which workers without a package need not spend.
    from torch._inductor import aoti_load_package

    try:
        module: Module = aoti_load_package(path)
    except RuntimeError as error:
        raise SpecError(
            f"{path}: PyTorch {torch.__version__} cannot load this package ({str(error).splitlines()[0]}); "
            "run 'make export FORMAT=aoti' again with this version"
        ) from error
    return module


# What workers run, the faster format first.
LOADERS: dict[Format, Callable[[Path, torch.device], Module]] = {
    "aoti": load_aoti,
    "torchscript": load_for_inference,
}
