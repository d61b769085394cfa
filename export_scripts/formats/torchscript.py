"""TorchScript, `.pt`: what TorchServe, DJL, libtorch and Triton run."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipserve.encoder_spec import Device, Precision, has_half_weights
from clipserve.errors import ExportError
from clipserve.loading import Module, load_for_inference, load_torchscript
from export_scripts.encoders.half import halve_weights
from export_scripts.formats.base import DTYPES, EncoderFormat, Inputs, ZipFormat

# The record that names the oldest version of PyTorch's format that has all operators; newer ones hide it.
VERSIONS = (".data/version", "version")


class TorchScript(ZipFormat):
    """A trace; it holds no machine code, but is bound to CPU or GPU by the precision's kernels."""

    doing = "tracing"
    precisions: Mapping[Device, tuple[Precision, ...]] = {
        "cpu": ("fp32", "bf16", "fp16", "int8"),
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
        elif precision != "int8":
            encoder = encoder.to(DTYPES[precision])
        save(trace(encoder, inputs.example), device, path)

    def load(self, path: Path, device: torch.device) -> Module:
        """As a worker loads it."""
        return load_for_inference(path, device)


def trace(encoder: nn.Module, example: tuple[Any, ...]) -> torch.jit.ScriptModule:
    """A trace of an encoder that runs on the device that its weights are on, or are loaded to.

    Raises:
        ExportError: it would run on one device only.
    """
    with quiet_tracing(), _first_names():
        # Inputs that are stored would be in the file for good. Not strict: a dictionary may come back.
        traced: torch.jit.ScriptModule = torch.jit.trace(
            encoder, example, check_trace=False, strict=False, _store_inputs=False
        )
    if constants := device_constants(traced):
        raise ExportError(
            f"the graph holds device constants ({', '.join(constants)}), which would bind it to one device"
        )
    return traced


@contextmanager
def _first_names() -> Iterator[None]:
    """Names a trace's classes as in a process that has traced nothing before: PyTorch numbers them on."""
    state: Any = torch.jit._state
    recursive: Any = torch.jit._recursive
    before = state._python_cu, recursive.concrete_type_store
    state._python_cu, recursive.concrete_type_store = (
        torch._C.CompilationUnit(),
        recursive.ConcreteTypeStore(),
    )
    try:
        yield
    finally:
        state._python_cu, recursive.concrete_type_store = before


def save(traced: torch.jit.ScriptModule, device: torch.device, path: Path) -> None:
    """Writes a trace so that equal encoders give equal files, wherever they were traced."""
    with quiet_tracing():
        # Not by `torch.jit.save`: where the disk is full, PyTorch's writer of files aborts the process.
        path.write_bytes(traced.save_to_buffer())
        # A second time from the loaded one: who loads and saves it once more gets the same hash.
        path.write_bytes(load_torchscript(path, device).save_to_buffer())
    _drop_debug_records(path)


def _drop_debug_records(path: Path) -> None:
    """Takes out which line of which file on the exporting machine each operator came from.

    The writer is PyTorch's own, for weights lie at multiples of 64 bytes. It is told of each record, and
    writes its version and the hash of all records at the end itself.
    """
    reader: Any = torch._C.PyTorchFileReader(str(path))
    buffer = io.BytesIO()
    writer: Any = torch._C.PyTorchFileWriter(buffer)
    for name in reader.get_all_records():
        if not name.endswith(".debug_pkl") and name not in (*VERSIONS, ".data/serialization_id"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    # Under a lower version, operators would be loaded as older ones were.
    version = next(name for name in VERSIONS if reader.has_record(name))
    writer.set_min_version(int(reader.get_record(version)))
    writer.write_end_of_file()
    path.write_bytes(buffer.getbuffer())


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
