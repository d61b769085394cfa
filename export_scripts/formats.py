"""The formats of an encoder file: how each is made, loaded back, hashed, and given its extra files.

| format | file | made by | run by |
|---|---|---|---|
| `torchscript` | `.pt` | `torch.jit.trace` | TorchServe, DJL, libtorch, Triton |
| `aoti` | `.pt2` | `torch.export` and AOTInductor | TorchServe, on CPUs with the same instruction sets |
| `onnx` | `.onnx` | `torch.export` and PyTorch's ONNX exporter | ONNX Runtime |
"""

from __future__ import annotations

import logging
import platform
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from clipserve.encoder import cpu_capability, load_aoti, load_for_inference, load_torchscript
from clipserve.encoder_spec import (
    SPEC_FILE,
    SUFFIXES,
    Device,
    EncoderSpec,
    Format,
    Precision,
    artifact_sha256,
    read_extra_file,
    sha256,
)
from clipserve.errors import ExportError, SpecError

# Earliest time that a zip entry can have: equal inputs give equal files.
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)

# An ONNX file is a protocol buffer, which holds no more.
ONNX_MOST_BYTES = 2**31 - 1

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Inputs:
    """What a format needs to know of an encoder's inputs.

    Attributes:
        example: one of each, in their order.
        names: of each.
        varying: of each, the dimensions that vary: position, name, and the most it may be.
    """

    example: tuple[Tensor, ...]
    names: tuple[str, ...]
    varying: tuple[dict[int, tuple[str, int | None]], ...]


class EncoderFormat(Protocol):
    """One format of encoder files."""

    precisions: Mapping[Device, tuple[Precision, ...]]
    # What makes such a file beside PyTorch.
    libraries: tuple[str, ...]

    def check(self) -> None:
        """Checks that this machine can make such files.

        Raises:
            ExportError: it cannot.
        """

    def cpu_capability(self) -> str | None:
        """See `EncoderSpec.cpu_capability`."""

    def make(self, encoder: nn.Module, inputs: Inputs, path: Path) -> None:
        """Writes an encoder, without extra files.

        Raises:
            ExportError: this encoder is not to be had in this format.
        """

    def load(self, path: Path, device: torch.device) -> Run:
        """Loads a file, with or without extra files: the encoder's inputs to float32 `[N, D]`."""

    def add_extra_files(self, path: Path, files: Mapping[str, str]) -> None:
        """Puts texts into the file, by name."""

    def extra_file(self, path: Path, name: str) -> bytes:
        """One of these texts.

        Raises:
            SpecError: the file is not readable, or carries none of this name.
        """

    def sha256(self, path: Path) -> str:
        """See `EncoderSpec.artifact_sha256`; extra files do not count."""


class _ZipFormat:
    """Both of PyTorch's formats: a zip file with one folder, and extra files in that folder's `extra/`."""

    def add_extra_files(self, path: Path, files: Mapping[str, str]) -> None:
        with zipfile.ZipFile(path, "a") as archive:
            folder = archive.namelist()[0].partition("/")[0]
            for name, text in files.items():
                archive.writestr(zipfile.ZipInfo(f"{folder}/extra/{name}", ZIP_EPOCH), text)

    def extra_file(self, path: Path, name: str) -> bytes:
        return read_extra_file(path, name)

    def sha256(self, path: Path) -> str:
        return artifact_sha256(path)


class TorchScript(_ZipFormat):
    """A trace; it holds no machine code, but is bound to CPU or GPU by the precision's kernels."""

    precisions: Mapping[Device, tuple[Precision, ...]] = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "fp16")}
    libraries: tuple[str, ...] = ()

    def check(self) -> None:
        """PyTorch is enough."""

    def cpu_capability(self) -> None:
        """No machine code."""

    def make(self, encoder: nn.Module, inputs: Inputs, path: Path) -> None:
        """Traces; what varies is not said, but parity is checked at other sizes than the example's."""
        device = inputs.example[0].device
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


class Aoti(_ZipFormat):
    """A package compiled by AOTInductor: machine code for this CPU, with the weights inside."""

    precisions: Mapping[Device, tuple[Precision, ...]] = {"cpu": ("fp32", "bf16"), "cuda": ()}
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

    def make(self, encoder: nn.Module, inputs: Inputs, path: Path) -> None:
        """Exports with dynamic sizes and compiles."""
        from torch._inductor import aoti_compile_and_package
        from torch._inductor.utils import fresh_cache

        with _quiet_export(), fresh_cache(dir=str(path.parent)):
            program = _export(encoder, inputs)
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=dict(self.options))

    def load(self, path: Path, device: torch.device) -> Run:
        """`aoti_load_package`."""
        return load_aoti(path)


class Onnx:
    """A graph of ONNX's standard operators, weights inside; extra files are metadata properties."""

    # ONNX Runtime's CPU kernels take no bfloat16; float16 they compute in float32.
    precisions: Mapping[Device, tuple[Precision, ...]] = {"cpu": ("fp32", "fp16"), "cuda": ()}
    libraries: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime")

    def check(self) -> None:
        """Three more packages are needed."""
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ModuleNotFoundError as error:
            raise ExportError(
                f"FORMAT=onnx: no package {error.name!r} here; 'make export FORMAT=onnx' installs what is "
                "needed, or pip install '.[onnx]'"
            ) from error

    def cpu_capability(self) -> None:
        """No machine code."""

    def make(self, encoder: nn.Module, inputs: Inputs, path: Path) -> None:
        """Exports with dynamic sizes, into one file."""
        size = sum(t.numel() * t.element_size() for t in encoder.state_dict().values())
        if size > ONNX_MOST_BYTES:
            raise ExportError(
                f"FORMAT=onnx: {size / 1e9:.1f} GB of weights, one ONNX file holds 2.1 GB; run 'make export' "
                "for TorchScript"
            )
        with _quiet_export():
            program = torch.onnx.export(
                _export(encoder, inputs),
                dynamo=True,
                input_names=list(inputs.names),
                output_names=["embeddings"],
                verbose=False,
            )
            if program is None:
                raise ExportError("FORMAT=onnx: PyTorch's exporter gave no model")
            program.save(path, external_data=False)

    def load(self, path: Path, device: torch.device) -> Run:
        """A session of ONNX Runtime on the CPU, with as many threads as PyTorch has."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]

        def run(*inputs: Tensor) -> Tensor:
            feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
            return torch.from_numpy(session.run(None, feed)[0])

        return run

    def add_extra_files(self, path: Path, files: Mapping[str, str]) -> None:
        """See `EncoderFormat`."""
        import onnx

        model = onnx.load(path)
        onnx.helper.set_model_props(model, dict(files))
        onnx.save(model, path)

    def extra_file(self, path: Path, name: str) -> bytes:
        """See `EncoderFormat`."""
        for entry in _onnx_model(path).metadata_props:
            if entry.key == name:
                value: str = entry.value
                return value.encode()
        raise SpecError(f"{path}: carries no {name}, so it was not written by clipserve; run 'make export'")

    def sha256(self, path: Path) -> str:
        """Of the model without its metadata properties."""
        model = _onnx_model(path)
        del model.metadata_props[:]
        return sha256(model.SerializeToString(deterministic=True))


def _onnx_model(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path)
    except (OSError, DecodeError) as error:
        raise SpecError(f"{path}: not a readable encoder ({error}); run 'make export'") from error


FORMATS: dict[Format, EncoderFormat] = {"torchscript": TorchScript(), "aoti": Aoti(), "onnx": Onnx()}


def encoder_files(store: Path) -> list[Path]:
    """The encoder files of all formats in a folder."""
    return sorted(path for suffix in SUFFIXES.values() for path in store.glob(f"*{suffix}"))


def format_of(path: Path) -> EncoderFormat:
    """The format of an encoder file, by its name."""
    return next(FORMATS[name] for name, suffix in SUFFIXES.items() if path.suffix == suffix)


def read_any_spec(path: Path) -> EncoderSpec:
    """The spec inside an encoder file of any format.

    Raises:
        SpecError: the file is missing, damaged or of another version.
    """
    text = format_of(path).extra_file(path, SPEC_FILE).decode("utf-8", errors="replace")
    return EncoderSpec.from_json(text, str(path))


def _export(encoder: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    dimensions = {
        name: torch.export.Dim(name, min=1, max=most)
        for dims in inputs.varying
        for name, most in dims.values()
    }
    shapes = tuple({i: dimensions[name] for i, (name, _) in dims.items()} for dims in inputs.varying)
    return torch.export.export(encoder, inputs.example, dynamic_shapes=shapes)


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


@contextmanager
def _quiet_export() -> Iterator[None]:
    """Silences what PyTorch's exporters say about their own code; any other warning passes."""
    # "torchvision is not installed": it is not needed.
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
            yield
    finally:
        registration.setLevel(level)
