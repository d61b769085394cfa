"""Weights laid out once for the CPU's matrix product, not anew in every call.

oneDNN multiplies by a weight in blocks. TorchScript hands it the weight as it was saved, so that each call
of `aten::linear` copies it into blocks first: on one core with AVX512-BF16 a fifth of the time of one picture
and two fifths of that of one text. Freezing does not hoist that copy out of the graph. So it is done here,
after loading: the encoder file stays plain `aten` operators that any libtorch runs, and the same numbers come
out.
"""

from __future__ import annotations

from typing import Any

import torch

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


def prepack_linear_layers(module: torch.jit.ScriptModule) -> None:
    """Packs the weights of a loaded encoder's linear layers for the CPU, in place.

    Without oneDNN, or for a type that it does not multiply on this CPU, nothing is changed. The module cannot
    be saved afterwards, and must not have run before: its graph is compiled at the first run.

    Args:
        module: on the CPU.
    """
    if not torch.backends.mkldnn.is_available():
        return
    types = {torch.float32}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        types.add(torch.bfloat16)
    with torch.no_grad():
        for layer in module.modules():
            if layer.original_name != "Linear" or layer.weight.dtype not in types:
                continue
            graph: Any = layer.graph
            torch._C._jit_pass_custom_pattern_based_rewrite_graph(PLAIN_LINEAR, PACKED_LINEAR, graph)
            if graph.findNode("mkldnn::_linear_pointwise") is None:
                continue
            # The original is dropped at once: no second copy of all weights at any time.
            layer.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight)
