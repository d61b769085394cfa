from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clipserve import hardware, prepack
from clipserve.hardware import cpu_has_half_weights, cpu_has_int8_tiles, int8_levels
from clipserve.prepack import prepack_linear_layers
from export_scripts.encoders.half import halve_weights
from export_scripts.encoders.int8 import COARSE_LEVELS, WEIGHT_LEVELS, QuantizedLinear

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


def loaded(folder: Path, dtype: torch.dtype, *, half: bool = False) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    path = folder / "layers.pt"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)")
        layers = Layers().to(dtype).eval()
        example = torch.randn(2, 5, 48, dtype=dtype)
        torch.jit.save(torch.jit.trace(halve_weights(layers) if half else layers, example), path)
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


@pytest.mark.skipif(not cpu_has_half_weights(), reason="FBGEMM does not run on this CPU")
def test_packed_half_weights_give_the_same_numbers(tmp_path: Path) -> None:
    plain, packed = (loaded(tmp_path, torch.float32, half=True) for _ in range(2))
    prepack_linear_layers(packed)
    # The file's weights are gone: what is packed is the only copy.
    assert [m.weight.numel() for m in packed.modules() if m.original_name == "HalfLinear"] == [0, 0]
    with torch.inference_mode():
        for shape in ((2, 5, 48), (1, 50, 48), (8, 3, 48), (7, 48)):
            x = torch.randn(shape)
            torch.testing.assert_close(packed(x), plain(x), rtol=0, atol=1e-6)
    assert "quantized::linear_dynamic_fp16" in str(packed.inlined_graph)
    assert "aten::linear" not in str(packed.inlined_graph)
    assert "aten::to" not in str(packed.inlined_graph)


def test_half_weights_are_what_the_layers_were_rounded_to(tmp_path: Path) -> None:
    """Reference: `nn.Linear` with its weight rounded to half precision and back."""
    torch.manual_seed(0)
    original = Layers().eval()
    with torch.no_grad():
        for layer in (original.inner[0], original.outer):
            layer.weight.copy_(layer.weight.half().float())
        x = torch.randn(3, 5, 48)
        module = loaded(tmp_path, torch.float32, half=True)
        prepack_linear_layers(module)
        torch.testing.assert_close(module(x), original(x), rtol=0, atol=1e-6)


def test_without_fbgemm_half_weights_are_cast_at_each_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepack, "cpu_has_half_weights", lambda: False)
    module = loaded(tmp_path, torch.float32, half=True)
    prepack_linear_layers(module)
    assert module.outer.weight.dtype == torch.float16
    assert module.outer.weight.numel() == 96 * 24
    assert module(torch.randn(2, 48)).shape == (2, 24)
    assert "aten::linear" in str(module.inlined_graph)


class BytesLayers(nn.Module):
    """`Layers` in int8."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        layers = Layers()
        assert isinstance(layers.inner[0], nn.Linear)
        self.inner = nn.Sequential(QuantizedLinear(layers.inner[0], levels), nn.GELU())
        self.outer = QuantizedLinear(layers.outer, levels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outer(self.inner(x))
        return y


def bytes_layers(folder: Path, levels: int = WEIGHT_LEVELS) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    path = folder / "bytes.pt"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)")
        torch.jit.save(torch.jit.trace(BytesLayers(levels).eval(), torch.randn(2, 5, 48)), path)
        module: torch.jit.ScriptModule = torch.jit.load(path)
    return module


EXACT = pytest.mark.skipif(int8_levels() != WEIGHT_LEVELS, reason="products of bytes saturate on this CPU")
TILES = pytest.mark.skipif(not cpu_has_int8_tiles(), reason="this CPU has no AMX")


@pytest.mark.skipif(int8_levels() is None, reason="FBGEMM does not run on this CPU")
@pytest.mark.parametrize(
    ("levels", "tiles"),
    [
        (COARSE_LEVELS, False),
        pytest.param(WEIGHT_LEVELS, False, marks=EXACT),
        pytest.param(WEIGHT_LEVELS, True, marks=[EXACT, TILES]),
    ],
)
def test_packed_bytes_give_the_numbers_of_the_plain_operators(
    tmp_path: Path, levels: int, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepack, "cpu_has_int8_tiles", lambda: tiles)
    plain, packed = bytes_layers(tmp_path, levels), bytes_layers(tmp_path)
    prepack_linear_layers(packed, levels)
    # The file's weights are gone: what is packed is the only copy.
    weights = [m.weight for m in packed.modules() if m.original_name == "QuantizedLinear"]
    assert all(w.layout == torch._mkldnn if tiles else w.numel() == 0 for w in weights)
    with torch.inference_mode():
        for shape in ((2, 5, 48), (1, 50, 48), (8, 3, 48), (7, 48)):
            # Rows whose lengths are far apart, and one of zeros.
            x = torch.randn(shape) * torch.logspace(-3, 3, shape[-2])[:, None]
            x.view(-1, 48)[0] = 0
            expected = plain(x)
            # What falls between two levels may be rounded to either: of thousands, none or a few.
            near = torch.isclose(packed(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
            assert near.float().mean() > 0.97
            # By row, whatever is beside it.
            for row in range(x.shape[0]):
                assert torch.equal(packed(x)[row], packed(x[row : row + 1])[0])
    operator = prepack.TILED_INT8_OPERATOR if tiles else prepack.INT8_OPERATOR
    assert operator in str(packed.inlined_graph)
    assert "aten::linear" not in str(packed.inlined_graph)
    assert ("aten::round" in str(packed.inlined_graph)) == tiles
    assert "aten::mul" not in str(packed.inlined_graph)


@pytest.mark.skipif(int8_levels() is None, reason="FBGEMM does not run on this CPU")
def test_bytes_are_near_the_floats_that_they_stand_for(tmp_path: Path) -> None:
    """Reference: `nn.Linear`. A row's error is a share of that row, and not of its largest neighbour."""
    module = bytes_layers(tmp_path)
    torch.manual_seed(0)
    original = Layers().eval()
    prepack_linear_layers(module)
    with torch.inference_mode():
        x = torch.randn(6, 48) * torch.logspace(0, 4, 6)[:, None]
        cosines = torch.nn.functional.cosine_similarity(module(x), original(x))
    assert cosines.min() > 0.999


def test_without_fbgemm_bytes_are_multiplied_as_floats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepack, "int8_levels", lambda: None)
    module = bytes_layers(tmp_path)
    prepack_linear_layers(module)
    assert module.outer.weight.dtype == torch.int8
    assert module(torch.randn(2, 48)).shape == (2, 24)
    assert "aten::linear" in str(module.inlined_graph)


@pytest.mark.parametrize(("vnni", "levels"), [(True, 127), (False, 63)])
def test_levels_are_what_the_cpu_adds_exactly(
    vnni: bool, levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_vnni": vnni})
    monkeypatch.setattr(hardware, "cpu_has_half_weights", lambda: True)
    assert int8_levels() == levels
    monkeypatch.setattr(hardware, "cpu_has_half_weights", lambda: False)
    assert int8_levels() is None


@pytest.mark.parametrize("tiles", [False, True])
def test_fewer_levels_than_the_cpu_has_are_multiplied_as_on_cpus_that_have_no_more(
    tmp_path: Path, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepack, "int8_levels", lambda: WEIGHT_LEVELS)
    monkeypatch.setattr(prepack, "cpu_has_int8_tiles", lambda: tiles)
    module = bytes_layers(tmp_path)
    prepack_linear_layers(module, COARSE_LEVELS)
    assert prepack.INT8_OPERATOR in str(module.inlined_graph)


@pytest.mark.parametrize(("amx", "onednn"), [(True, True), (True, False), (False, True)])
def test_bytes_are_multiplied_in_tiles_where_there_are_some(
    amx: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_int8": amx})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    assert cpu_has_int8_tiles() == (amx and onednn)
