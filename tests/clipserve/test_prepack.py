from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clipserve.prepack import prepack_linear_layers

BF16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(
        not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bf16 on this CPU"
    ),
)


class Layers(nn.Module):
    """Linear layers with and without bias, and what is around them in an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(48, 96), nn.GELU())
        self.outer = nn.Linear(96, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outer(self.inner(x))
        return y


def loaded(folder: Path, dtype: torch.dtype) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    path = folder / "layers.pt"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)")
        example = torch.randn(2, 5, 48, dtype=dtype)
        torch.jit.save(torch.jit.trace(Layers().to(dtype).eval(), example), path)
        # No encoder, which is all that `load_torchscript` admits.
        module: torch.jit.ScriptModule = torch.jit.load(path)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_packed_weights_give_the_same_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    plain, packed = loaded(tmp_path, dtype), loaded(tmp_path, dtype)
    prepack_linear_layers(packed)
    layouts = [m.weight.layout for m in packed.modules() if m.original_name == "Linear"]
    assert layouts == [torch._mkldnn] * 2
    with torch.inference_mode():
        for shape in ((2, 5, 48), (1, 50, 48), (8, 3, 48), (7, 48)):
            x = torch.randn(shape).to(dtype)
            torch.testing.assert_close(packed(x), plain(x), rtol=0, atol=1e-6)
    assert "mkldnn::_linear_pointwise" in str(packed.inlined_graph)
    assert "aten::linear" not in str(packed.inlined_graph)


def test_types_that_onednn_does_not_multiply_are_left_alone(tmp_path: Path) -> None:
    module, example = loaded(tmp_path, torch.float64), torch.randn(2, 5, 48, dtype=torch.float64)
    expected = module(example)
    prepack_linear_layers(module)
    assert module.outer.weight.layout == torch.strided
    torch.testing.assert_close(module(example), expected, rtol=0, atol=0)


def test_without_onednn_nothing_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    module = loaded(tmp_path, torch.float32)
    prepack_linear_layers(module)
    assert module.outer.weight.layout == torch.strided
