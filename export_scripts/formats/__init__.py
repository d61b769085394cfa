"""The formats of an encoder file: how each is made, loaded back, hashed, and given its extra files.

| format | file | made by | run by |
|---|---|---|---|
| `torchscript` | `.pt` | `torch.jit.trace` | TorchServe, DJL, libtorch, Triton |
| `aoti` | `.pt2` | `torch.export` and AOTInductor | TorchServe, on CPUs with the same instruction sets |
| `onnx` | `.onnx` | `torch.export` and PyTorch's ONNX exporter | ONNX Runtime |
"""

from __future__ import annotations

from importlib import import_module

from clipserve.encoder_spec import SUFFIXES, Format
from export_scripts.formats.base import EncoderFormat

# Of each format that a spec may name, what the file of that name in this folder calls FORMAT.
FORMATS: dict[Format, EncoderFormat] = {name: import_module(f"{__name__}.{name}").FORMAT for name in SUFFIXES}
