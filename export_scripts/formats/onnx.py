"""ONNX, `.onnx`: what ONNX Runtime runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipserve.encoder_spec import Device, Precision, sha256
from clipserve.errors import ExportError, SpecError
from clipserve.loading import Module
from export_scripts.formats.base import DTYPES, EncoderFormat, Inputs, export_program, quiet_export

# An ONNX file is a protocol buffer, which holds no more.
ONNX_MOST_BYTES = 2**31 - 1


class Onnx:
    """A graph of ONNX's standard operators, weights inside; extra files are metadata properties."""

    doing = "exporting"
    # ONNX Runtime's CPU kernels take no bfloat16; float16 they compute in float32.
    precisions: Mapping[Device, tuple[Precision, ...]] = {"cpu": ("fp32", "fp16"), "cuda": ()}
    candidates: Mapping[Device, tuple[Precision, ...]] = {"cpu": ("fp32",), "cuda": ()}
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

    def make(self, encoder: nn.Module, precision: Precision, inputs: Inputs, path: Path) -> None:
        """Exports with dynamic sizes, into one file."""
        encoder = encoder.to(DTYPES[precision])
        size = sum(t.numel() * t.element_size() for t in encoder.state_dict().values())
        if size > ONNX_MOST_BYTES:
            raise ExportError(
                f"FORMAT=onnx: {size / 1e9:.1f} GB of weights, one ONNX file holds 2.1 GB; run 'make export' "
                "for TorchScript"
            )
        with quiet_export():
            program = torch.onnx.export(
                export_program(encoder, inputs),
                dynamo=True,
                input_names=[given.name for given in inputs.declared],
                output_names=["embeddings"],
                verbose=False,
            )
            if program is None:
                raise ExportError("FORMAT=onnx: PyTorch's exporter gave no model")
            program.save(path, external_data=False)

    def load(self, path: Path, device: torch.device) -> Module:
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
        """See `Reader`."""
        for entry in _onnx_model(path).metadata_props:
            if entry.key == name:
                value: str = entry.value
                return value.encode()
        raise SpecError(f"{path}: carries no {name}, so it was not written by clipserve; run 'make export'")

    def sha256(self, path: Path) -> str:
        """See `Reader`: of the model without its metadata properties."""
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


FORMAT: EncoderFormat = Onnx()
