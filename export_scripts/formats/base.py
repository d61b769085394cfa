"""What the formats of an encoder file have in common."""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from clipserve.encoder_spec import Device, Precision
from clipserve.loading import Module
from clipserve.preprocessing import EncoderInput, Varying
from clipserve.store import PyTorchReader, Reader
from export_scripts.zips import ZIP_EPOCH

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Inputs:
    """What a format needs to know of an encoder's inputs.

    Attributes:
        declared: names, and sizes that vary.
        example: one of each, in their order.
    """

    declared: tuple[EncoderInput, ...]
    example: tuple[Tensor, ...]


class EncoderFormat(Reader, Protocol):
    """One format of encoder files.

    Attributes:
        doing: what `make` does, in one word for people who wait.
        precisions: that it takes, by device.
        candidates: those of them that `auto` chooses among where the hardware multiplies them.
        libraries: what makes such a file beside PyTorch.
    """

    doing: str
    precisions: Mapping[Device, tuple[Precision, ...]]
    candidates: Mapping[Device, tuple[Precision, ...]]
    libraries: tuple[str, ...]

    def check(self) -> None:
        """Checks that this machine can make such files.

        Raises:
            ExportError: it cannot.
        """

    def cpu_capability(self) -> str | None:
        """See `EncoderSpec.cpu_capability`."""

    def make(self, encoder: nn.Module, precision: Precision, inputs: Inputs, path: Path) -> None:
        """Writes an encoder, without extra files.

        Args:
            encoder: float32, on the device; its weights are changed. For int8, what `quantize` made of it.

        Raises:
            ExportError: this encoder is not to be had in this format.
            ParityError: nor in this precision.
        """

    def load(self, path: Path, device: torch.device) -> Module:
        """Loads a file, with or without extra files: the encoder's inputs to float32 `[N, D]`."""

    def add_extra_files(self, path: Path, files: Mapping[str, str]) -> None:
        """Puts texts into the file, by name."""


class ZipFormat(PyTorchReader):
    """Both of PyTorch's formats: a zip file with one folder, and extra files in that folder's `extra/`."""

    def add_extra_files(self, path: Path, files: Mapping[str, str]) -> None:
        """See `EncoderFormat`."""
        with zipfile.ZipFile(path, "a") as archive:
            folder = archive.namelist()[0].partition("/")[0]
            for name, text in files.items():
                archive.writestr(zipfile.ZipInfo(f"{folder}/extra/{name}", ZIP_EPOCH), text)


def export_program(encoder: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """What `torch.export` makes of an encoder, for the formats that begin with it; its sizes are dynamic."""
    # One object a name: sizes of one name are equal.
    dimensions: dict[str, Any] = {}
    shapes = []
    for declared in inputs.declared:
        sizes = enumerate((Varying("batch", None), *declared.row))
        varying = {i: size for i, size in sizes if isinstance(size, Varying)}
        for size in varying.values():
            dimensions.setdefault(size.name, torch.export.Dim(size.name, min=1, max=size.most))
        shapes.append({i: dimensions[size.name] for i, size in varying.items()})
    return torch.export.export(encoder, inputs.example, dynamic_shapes=tuple(shapes))


@contextmanager
def quiet_export() -> Iterator[None]:
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
