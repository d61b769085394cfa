"""TorchScript, `.pt`: what TorchServe, DJL, libtorch and Triton run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from clipserve.encoder import load_for_inference, load_torchscript
from clipserve.encoder_spec import Device, Precision, has_half_weights
from clipserve.errors import ExportError
from export_scripts.encoders.half import halve_weights
from export_scripts.formats.base import DTYPES, EncoderFormat, Inputs, ZipFormat


class TorchScript(ZipFormat):
    """A trace; it holds no machine code, but is bound to CPU or GPU by the precision's kernels."""

    doing = "tracing"
    precisions: Mapping[Device, tuple[Precision, ...]] = {
        "cpu": ("fp32", "bf16", "fp16"),
        "cuda": ("fp32", "fp16"),
    }
    candidates = precisions
    libraries: tuple[str, ...] = ()

    def check(self) -> None:
        """PyTorch is enough."""

    def cpu_capability(self) -> None:
        """No machine code."""

    def make(self, encoder: nn.Module, precision: Precision, inputs: Inputs, path: Path) -> None:
        """Traces; what varies is not said, but parity is checked at other sizes than the example's."""
        device = inputs.example[0].device
        if device.type == "cpu" and has_half_weights("torchscript", "cpu", precision):
            encoder = halve_weights(encoder)
        else:
            encoder = encoder.to(DTYPES[precision])
        with quiet_tracing():
            # Inputs that are stored would be in the file for good.
            traced = torch.jit.trace(encoder, inputs.example, check_trace=False, _store_inputs=False)
        if constants := device_constants(traced):
            raise ExportError(
                f"the graph holds device constants ({', '.join(constants)}), which would bind it to "
                "one device"
            )
        with quiet_tracing():
            # Not by `torch.jit.save`: where the disk is full, PyTorch's writer of files aborts the process.
            path.write_bytes(traced.save_to_buffer())
            # A second time from the loaded one: who loads and saves it once more gets the same records.
            path.write_bytes(load_torchscript(path, device).save_to_buffer())

    def load(self, path: Path, device: torch.device) -> torch.jit.ScriptModule:
        """As a worker loads it."""
        return load_for_inference(path, device)


def device_constants(module: torch.jit.ScriptModule) -> list[str]:
    """Device constants in the frozen graph; a graph that has one runs on that device only."""
    with quiet_tracing():
        graph = torch.jit.freeze(module.eval()).inlined_graph
    return [
        str(node.output().toIValue())
        for node in graph.findAllNodes("prim::Constant")
        if str(node.output().type()) == "Device"
    ]


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Silences what is known and accepted of `torch.jit`; any other warning passes."""
    with warnings.catch_warnings():
        # torch.jit is past its end of maintenance, which the README says once for all its calls.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)")
        yield


FORMAT: EncoderFormat = TorchScript()
