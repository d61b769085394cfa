"""Weights laid out once for the CPU's matrix product, not anew in every call.

Both oneDNN and FBGEMM multiply by a weight in blocks. TorchScript hands it over as it was saved, so that each
call of `aten::linear` copies it into blocks first: on one core with AVX512-BF16 a fifth of the time of one
picture and two fifths of that of one text. Freezing does not hoist that copy out of the graph. So it is done
here, after loading: the encoder file stays plain `aten` operators that any libtorch runs, and the same
numbers come out.
"""

from __future__ import annotations

from typing import Any

import torch

from clipserve.hardware import cpu_has_half_weights

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


def prepack_linear_layers(module: torch.jit.ScriptModule) -> None:
    """Packs the weights of a loaded encoder's linear layers for the CPU, in place.

    What neither oneDNN nor FBGEMM multiplies on this CPU stays as it is. The module cannot be saved
    afterwards, and must not have run before: its graph is compiled at the first run.

    Args:
        module: on the CPU.
    """
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


# The original is dropped at once: no second copy of all weights at any time.


def _pack(layer: Any) -> None:
    if _rewritten(layer, PLAIN_LINEAR, PACKED_LINEAR, "mkldnn::_linear_pointwise"):
        layer.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight)


def _pack_half(layer: Any) -> None:
    if _rewritten(layer, PLAIN_HALF_LINEAR, PACKED_HALF_LINEAR, "quantized::linear_dynamic_fp16"):
        packed = torch.ops.quantized.linear_prepack_fp16(layer.weight.float(), getattr(layer, "bias", None))
        layer._c._register_attribute(PACKED, torch._C._jit_try_infer_type(packed).type(), packed)
        layer.weight = torch.empty(0, dtype=torch.half)


def _rewritten(layer: Any, plain: str, packed: str, operator: str) -> bool:
    graph = layer.graph
    torch._C._jit_pass_custom_pattern_based_rewrite_graph(plain, packed, graph)
    found: bool = graph.findNode(operator) is not None
    return found
