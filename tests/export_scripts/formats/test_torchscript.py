"""The traced graph: bound to no device, and to no package but PyTorch."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clipserve.encoder_spec import Modality, Precision, read_spec
from clipserve.errors import ExportError
from clipserve.loading import load_torchscript
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.formats.torchscript import device_constants
from export_scripts.publish import export_encoder
from tests.export_scripts.exports import CPU, IMAGE_LAYOUTS, TEXT_LAYOUTS, Exported, Pairs, empty, rebuilt

# torch's own filter for warnings about its own code, which pytest's filters replace. (Tracing an embedding
# that knows its padding gives one.) Warnings about ours stay errors.
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn.functional")


def assert_portable(path: Path) -> None:
    module = load_torchscript(path, CPU)
    assert device_constants(module) == []
    graph = str(torch.jit.freeze(module.eval()).inlined_graph)
    assert "aten::scaled_dot_product_attention" in graph
    assert "Device = prim::Constant" not in graph


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@TEXT_LAYOUTS
def test_frozen_text_graph_has_no_device_constant(
    layout: str, precision: Precision, exported: Exported
) -> None:
    assert_portable(exported(layout, "text", precision))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@IMAGE_LAYOUTS
def test_frozen_image_graph_has_no_device_constant(
    layout: str, precision: Precision, exported: Exported
) -> None:
    assert_portable(exported(layout, "image", precision))


class WithArange(nn.Module):
    """Adds nothing, with a tensor made on a named device."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 0.0 * torch.arange(x.shape[0], device="cpu")[:, None]  # type: ignore[no-any-return]


def test_device_constants_are_found() -> None:
    x = torch.ones(2, 3)
    plain = nn.Linear(3, 3)
    assert device_constants(torch.jit.trace(plain, x)) == []
    bound = torch.jit.trace(WithArange(plain), x)
    assert "Device = prim::Constant" in str(torch.jit.freeze(bound.eval()).inlined_graph)
    assert [str(constant) for constant in device_constants(bound)] == ["cpu"]


def test_encoder_bound_to_its_device_is_not_published(pair: CheckpointPair, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"image encoder: the graph holds device constants \(cpu\)"):
        export_encoder(rebuilt(pair, "image", WithArange), "image", "cpu", "fp32", tmp_path)
    assert empty(tmp_path)


def test_file_runs_with_nothing_but_torch(store: Path, tmp_path: Path) -> None:
    code = f"""
import sys, torch
text = torch.jit.load({str(store / "clip-text-cpu-fp32.pt")!r})
image = torch.jit.load({str(store / "clip-image-cpu-fp32.pt")!r})
print(text(torch.ones(3, 5, dtype=torch.int64), torch.ones(3, 5, dtype=torch.int64)).shape)
print(image(torch.zeros(4, 3, 48, 48, dtype=torch.uint8)).dtype)
print([m for m in ("clipserve", "transformers", "export_scripts") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["torch.Size([3, 32])", "torch.float32", "[]"]


def test_export_is_repeatable(pair: CheckpointPair, tmp_path: Path) -> None:
    first, second = (export_encoder(pair, "text", "cpu", "fp32", tmp_path / name) for name in "ab")
    # TorchScript numbers its types through the process, so that the code's names differ.
    assert replace(first, artifact_sha256=second.artifact_sha256) == second


def test_bf16_is_bf16(exported: Exported) -> None:
    half, full = exported("clip", "image", "bf16"), exported("clip", "image", "fp32")
    assert {p.dtype for p in load_torchscript(half, CPU).parameters()} == {torch.bfloat16}
    assert read_spec(half).certificate.max_abs_diff > 1e-4
    # Another precision, the same space.
    assert read_spec(half).space_id == read_spec(full).space_id


@pytest.mark.parametrize(
    ("layout", "modality"),
    [("clip", "image"), ("clip", "text"), ("m-clip-xlm-r", "text"), ("siglip", "image"), ("siglip", "text")],
)
def test_no_warnings(layout: str, modality: Modality, pairs: Pairs, tmp_path: Path) -> None:
    """Above all no TracerWarning, which tells of a number that was baked into the graph."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.jit.TracerWarning.ignore_lib_warnings()  # type: ignore[attr-defined]
        export_encoder(pairs[layout], modality, "cpu", "fp32", tmp_path)
    assert [str(warning.message) for warning in seen] == []
