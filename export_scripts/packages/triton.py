"""Writes a model repository for NVIDIA's Triton Inference Server from exported encoders: `make triton`.

`clip_image` and `clip_text`, each with its `config.pbtxt` and version 1, for the PyTorch (libtorch) backend.
The encoders are those of the model store, byte for byte. No Triton has run this here: tests check the text
with Triton's own protobuf definition, and the names and shapes in it with the encoders.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from clipserve.command import run_command
from clipserve.encoder_spec import PARITY_BOUNDS, Device, EncoderSpec, Modality, Precision
from clipserve.errors import ExportError
from clipserve.folders import publish, staged
from clipserve.store import SERVED, Store
from export_scripts.export import STORE
from export_scripts.packages.folders import link_or_copy

# Triton may run on another machine than this; who exported a half precision did so for that one. Half weights
# for a CPU go last: Triton does not pack them, and casts them at every call.
PREFERRED: dict[Device, tuple[Precision, ...]] = {"cpu": ("bf16", "fp32", "fp16"), "cuda": ("fp16", "fp32")}

TYPES = {"uint8": "TYPE_UINT8", "int64": "TYPE_INT64"}

VERSION = "1"
# What the PyTorch backend looks for in a version's folder.
MODEL_FILE = "model.pt"

MAX_BATCH = 32  # rows of one forward pass
PREFERRED_BATCHES = (8, 16, 32)
MAX_QUEUE_DELAY_MICROSECONDS = 5000  # a lone request waits for company


def write_repository(
    store: Path, output: Path, model_id: str | None, device: Device, precision: Precision | None
) -> list[Path]:
    """Writes `clip_image/` and `clip_text/` into `output`; other models there stay.

    Args:
        model_id: which model; None where the store holds one only.
        device: take the variants for this device.
        precision: take the variants of this precision; None takes the first of `PREFERRED`.

    Returns:
        Both folders' paths.

    Raises:
        ClipServeError: nothing to serve, ambiguous, changed since its export, or not one embedding space.
    """
    found = Store.read(store, {"torchscript": SERVED["torchscript"]})
    of_model = found.model(model_id, "'make triton MODEL={}'")
    fitting = of_model.where(lambda s: s.device == device and precision in (None, s.precision))
    for modality in get_args(Modality):
        if modality not in {file.spec.modality for file in fitting.encoders}:
            raise ExportError(
                f"{store}: no {modality} encoder{f' of {model_id}' if model_id else ''} for {device}"
                f"{f' in {precision}' if precision else ''}, only "
                f"{found.names or 'no TorchScript encoder at all'}; run "
                f"'make export DEVICE={device}{f' PRECISION={precision}' if precision else ''}'"
            )
    pair = fitting.pair(device, PREFERRED[device])
    for file in pair:
        file.check_published()
    with staged(output) as work:
        for file in pair:
            folder = work / _name(file.spec)
            (folder / VERSION).mkdir(parents=True)
            link_or_copy(file.path, folder / VERSION / MODEL_FILE)
            (folder / "config.pbtxt").write_text(config(file.spec), encoding="ascii")
        # Only once both are made: an encoder of another export beside one of this would not pair.
        folders = [output / _name(file.spec) for file in pair]
        for folder in folders:
            publish(work / folder.name, folder)
    return folders


def _name(spec: EncoderSpec) -> str:
    """Triton's name of an encoder, and its folder's."""
    return f"clip_{spec.modality}"


def config(spec: EncoderSpec) -> str:
    """The text of an encoder's `config.pbtxt`.

    An input has the name of the graph's argument; `dims` are of one row, Triton puts the batch before them.
    """
    # A text may have any length: rows are batched with others of the same one, and the server pads nothing.
    listed = ",\n".join(
        f'  {{ name: "{given.name}" data_type: {TYPES[given.dtype]} '
        f"dims: [ {', '.join(str(size) if isinstance(size, int) else '-1' for size in given.row)} ] }}"
        for given in spec.preprocessing.inputs
    )
    kind = "KIND_CPU" if spec.device == "cpu" else "KIND_GPU"
    return f"""\
# {_ascii(spec.stem)}, space {spec.space_id}
name: "{_name(spec)}"
backend: "pytorch"
platform: "pytorch_libtorch"
max_batch_size: {MAX_BATCH}
input [
{listed}
]
# A graph's result has no name: the backend wants its position.
output [
  {{ name: "embedding__0" data_type: TYPE_FP32 dims: [ {spec.embedding_dim} ] }}
]
dynamic_batching {{
  preferred_batch_size: [ {", ".join(map(str, PREFERRED_BATCHES))} ]
  max_queue_delay_microseconds: {MAX_QUEUE_DELAY_MICROSECONDS}
}}
# On a CPU: instances of all models x INTRA_OP_THREAD_COUNT, which holds for all models, <= cores.
instance_group [ {{ kind: {kind} count: 1 }} ]
parameters {{ key: "INFERENCE_MODE" value {{ string_value: "true" }} }}
parameters {{ key: "ENABLE_WEIGHT_SHARING" value {{ string_value: "true" }} }}
parameters {{ key: "INTRA_OP_THREAD_COUNT" value {{ string_value: "1" }} }}
parameters {{ key: "INTER_OP_THREAD_COUNT" value {{ string_value: "1" }} }}
"""


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m export_scripts triton", description=__doc__)
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--output", type=Path, default=STORE / "triton", help="the model repository")
    parser.add_argument("--model", help="model id, where the store holds several")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", choices=list(PARITY_BOUNDS), help="take this precision only")
    arguments = parser.parse_args(argv)

    def write() -> None:
        for folder in write_repository(
            arguments.store, arguments.output, arguments.model, arguments.device, arguments.precision
        ):
            print(folder)

    return run_command("triton", write)
