"""Weights laid out once for the CPU's matrix product, not anew in every call.

Both oneDNN and FBGEMM multiply by a weight in blocks. TorchScript hands it over as it was saved, so that each
call of `aten::linear` copies it into blocks first: on one core with AVX512-BF16 a fifth of the time of one
picture and two fifths of that of one text. Freezing does not hoist that copy out of the graph. So it is done
here, after loading: the encoder file stays plain `aten` operators that any libtorch runs, and the same
numbers come out.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from clipserve.hardware import EXACT_LEVELS, cpu_has_half_weights, cpu_has_int8_tiles, int8_levels

# The graph of `nn.Linear`, and the same through the operator that PyTorch's compiler uses for packed weights.
# From Python its third last argument cannot be traced or scripted (`Scalar?[]`); as text it can be written.
PLAIN_LINEAR = """
graph(%input, %weight, %bias):
  %output = aten::linear(%input, %weight, %bias)
  return (%output)
"""
PACKED_LINEAR = """
graph(%input, %weight, %bias):
  %activation : str = prim::Constant[value="none"]()
  %scalars : Scalar?[] = prim::ListConstruct()
  %algorithm : str = prim::Constant[value=""]()
  %output = mkldnn::_linear_pointwise(%input, %weight, %bias, %activation, %scalars, %algorithm)
  return (%output)
"""

# The graph of a layer with its weight in half precision, and FBGEMM's product, which reads half of the bytes
# of a float32 weight and multiplies in float32. Bias and weight are in what it is given.
PACKED = "packed_half_weight"
PLAIN_HALF_LINEAR = """
graph(%self, %input, %bias, %dtype, %non_blocking, %copy, %format):
  %half = prim::GetAttr[name="weight"](%self)
  %weight = aten::to(%half, %dtype, %non_blocking, %copy, %format)
  %output = aten::linear(%input, %weight, %bias)
  return (%output)
"""
PACKED_HALF_LINEAR = f"""
graph(%self, %input, %bias, %dtype, %non_blocking, %copy, %format):
  %packed : __torch__.torch.classes.quantized.LinearPackedParamsBase = prim::GetAttr[name="{PACKED}"](%self)
  %output = quantized::linear_dynamic_fp16(%input, %packed)
  return (%output)
"""

# The graph of a layer in int8 between the magnitudes of its input's rows and the multiplication by them.
PLAIN_INT8_LINEAR = """
graph(%self, %input, %largest, %levels, %again, %dtype, %non_blocking, %copy, %format, %none):
  %unit = aten::div(%input, %largest)
  %spread = aten::mul(%unit, %levels)
  %whole = aten::round(%spread)
  %rounded = aten::div(%whole, %again)
  %bytes = prim::GetAttr[name="weight"](%self)
  %weight = aten::to(%bytes, %dtype, %non_blocking, %copy, %format)
  %product = aten::linear(%rounded, %weight, %none)
  %scale = prim::GetAttr[name="scale"](%self)
  %output = aten::mul(%product, %scale)
  return (%output)
"""
# FBGEMM's product, which rounds its input to the levels as it packs it: with a scale and a zero point that
# are the same for all rows, since all are between -1 and 1.
PACKED_INT8 = "packed_int8_weight"
PACKED_INT8_LINEAR = """
graph(%self, %input, %largest, %levels, %again, %dtype, %non_blocking, %copy, %format, %none):
  %unit = aten::div(%input, %largest)
  %packed : __torch__.torch.classes.quantized.LinearPackedParamsBase = prim::GetAttr[name="{name}"](%self)
  %step : float = prim::Constant[value={step!r}]()
  %zero : int = prim::Constant[value={zero}]()
  %output = quantized::linear_with_input_q_dq_qweight_dq_output_fp32(%unit, %step, %zero, %packed)
  return (%output)
"""
INT8_OPERATOR = "quantized::linear_with_input_q_dq_qweight_dq_output_fp32"
# oneDNN's, which takes the bytes; it runs on AMX, which FBGEMM knows nothing of.
INT8 = 1  # in a graph a type is its number among PyTorch's
ZERO_POINTS = "zero_points"
TILED_INT8_LINEAR = """
graph(%self, %input, %largest, %levels, %again, %dtype, %non_blocking, %copy, %format, %none):
  %most : int = prim::Constant[value={levels}]()
  %step = aten::div(%largest, %most)
  %spread = aten::div(%input, %step)
  %whole = aten::round(%spread)
  %byte : int = prim::Constant[value={byte}]()
  %bytes = aten::to(%whole, %byte, %non_blocking, %copy, %format)
  %weight = prim::GetAttr[name="weight"](%self)
  %scale = prim::GetAttr[name="scale"](%self)
  %zeros = prim::GetAttr[name="{zeros}"](%self)
  %one : float = prim::Constant[value=1.]()
  %zero : int = prim::Constant[value=0]()
  %activation : str = prim::Constant[value="none"]()
  %scalars : Scalar?[] = prim::ListConstruct()
  %algorithm : str = prim::Constant[value=""]()
  %output = onednn::qlinear_pointwise(%bytes, %one, %zero, %weight, %scale, %zeros, %none,
    %one, %zero, %dtype, %activation, %scalars, %algorithm)
  return (%output)
"""
TILED_INT8_OPERATOR = "onednn::qlinear_pointwise"


def prepack_linear_layers(module: torch.jit.ScriptModule, levels: int | None = None) -> None:
    """Packs the weights of a loaded encoder's linear layers for the CPU, in place.

    What neither oneDNN nor FBGEMM multiplies on this CPU stays as it is. The module cannot be saved
    afterwards, and must not have run before: its graph is compiled at the first run.

    Args:
        module: on the CPU.
        levels: of int8's activations; None takes as many as this CPU multiplies exactly, see `int8_levels`.
            With fewer it multiplies as CPUs do that have no more.
    """
    levels = int8_levels() if levels is None else levels
    pack_int8 = _pack_int8_in_tiles if levels == EXACT_LEVELS and cpu_has_int8_tiles() else _pack_int8
    types = set()
    if torch.backends.mkldnn.is_available():
        types.add(torch.float32)
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            types.add(torch.bfloat16)
    with torch.no_grad():
        for layer in module.modules():
            if layer.original_name == "Linear" and layer.weight.dtype in types:
                _pack(layer)
            elif layer.original_name == "HalfLinear" and cpu_has_half_weights():
                _pack_half(layer)
            elif layer.original_name == "QuantizedLinear" and levels is not None:
                pack_int8(layer, levels)


# The original is dropped at once: no second copy of all weights at any time.


def _pack(layer: Any) -> None:
    if _rewritten(layer, PLAIN_LINEAR, PACKED_LINEAR, "mkldnn::_linear_pointwise"):
        layer.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight)


def _pack_half(layer: Any) -> None:
    if _rewritten(layer, PLAIN_HALF_LINEAR, PACKED_HALF_LINEAR, "quantized::linear_dynamic_fp16"):
        packed = torch.ops.quantized.linear_prepack_fp16(layer.weight.float(), getattr(layer, "bias", None))
        _attach(layer, PACKED, packed, torch.half)


def _pack_int8(layer: Any, levels: int) -> None:
    # By its own sign an activation is between 1 and 2 · levels + 1, as a byte without one.
    packed_graph = PACKED_INT8_LINEAR.format(name=PACKED_INT8, step=1 / levels, zero=levels + 1)
    if _rewritten(layer, PLAIN_INT8_LINEAR, packed_graph, INT8_OPERATOR):
        zeros = torch.zeros(len(layer.scale), dtype=torch.long)
        with warnings.catch_warnings():
            # FBGEMM's packing takes no other form of a weight than this deprecated one.
            warnings.filterwarnings("ignore", r"torch\.quantize_per_tensor, torch\.quantize_per_channel and")
            weight = torch._make_per_channel_quantized_tensor(layer.weight, layer.scale.double(), zeros, 0)
        # Its bias is added after the row's magnitude has been multiplied in.
        _attach(layer, PACKED_INT8, torch.ops.quantized.linear_prepack(weight, None), torch.int8)


def _pack_int8_in_tiles(layer: Any, levels: int) -> None:
    packed_graph = TILED_INT8_LINEAR.format(levels=levels, byte=INT8, zeros=ZERO_POINTS)
    if _rewritten(layer, PLAIN_INT8_LINEAR, packed_graph, TILED_INT8_OPERATOR):
        zeros = torch.zeros(len(layer.scale), dtype=torch.int32)
        layer._c._register_attribute(ZERO_POINTS, torch._C.TensorType.get(), zeros)
        # The activations' scale is in the weight's: which of two is multiplied first would depend on how many
        # rows there are, and with it the last digit.
        layer.scale = layer.scale / levels
        layer.weight = torch.ops.onednn.qlinear_prepack(layer.weight, None)


def _attach(layer: Any, name: str, packed: Any, dtype: torch.dtype) -> None:
    """Gives a layer its packed weight, and takes the one that it was made of."""
    layer._c._register_attribute(name, torch._C._jit_try_infer_type(packed).type(), packed)
    layer.weight = torch.empty(0, dtype=dtype)


def _rewritten(layer: Any, plain: str, packed: str, operator: str) -> bool:
    graph = layer.graph
    torch._C._jit_pass_custom_pattern_based_rewrite_graph(plain, packed, graph)
    found: bool = graph.findNode(operator) is not None
    return found
