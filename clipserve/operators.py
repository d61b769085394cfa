"""Reads what a TorchScript file would do before any of it is done.

TorchScript has operators that read and write files, and a file may bring methods that run while it is loaded.
An exported encoder is arithmetic on tensors and needs neither, so that a list of what it may hold is short.
Whoever made the file can still have it compute something else: that is for the certificate to find, or not.
A `.pt2` is machine code and cannot be read like this.
"""

from __future__ import annotations

import pickletools
import re
from pathlib import Path
from typing import Any

import torch

from clipserve.errors import SpecError
from clipserve.prepack import INT8_OPERATOR, TILED_INT8_OPERATOR

# Every operator in the graphs of `export_scripts.encoders`, of every layout and precision.
OPERATORS = frozenset(
    {
        # The shape of an input, and what a check of it raises.
        *("aten::dim", "aten::Int", "aten::size", "prim::dtype", "prim::If", "prim::RaiseException"),
        *("prim::Constant", "prim::GetAttr", "prim::ListConstruct", "prim::ListUnpack", "prim::NumToTensor"),
        # Views and copies.
        *("aten::cat", "aten::expand", "aten::expand_as", "aten::flatten", "aten::gather", "aten::permute"),
        *("aten::select", "aten::slice", "aten::squeeze", "aten::to", "aten::transpose", "aten::unbind"),
        *("aten::unflatten", "aten::unsqueeze"),
        # Arithmetic.
        *("aten::abs", "aten::add", "aten::addcmul", "aten::amax", "aten::argmax", "aten::round"),
        *("aten::clamp", "aten::clamp_min", "aten::cumsum", "aten::div"),
        *(
            "aten::embedding",
            "aten::eq",
            "aten::ge",
            "aten::gelu",
            "aten::gt",
            "aten::layer_norm",
            "aten::le",
        ),
        *("aten::linalg_vector_norm", "aten::linear", "aten::mul", "aten::ne"),
        *("aten::scaled_dot_product_attention", "aten::silu", "aten::sum"),
        # What encoders for other programs are spelled in instead, see `export_scripts.encoders.spelling`.
        *("aten::__getitem__", "prim::DictConstruct"),
        *("aten::logical_and", "aten::logical_not", "aten::masked_fill", "aten::matmul", "aten::mean"),
        *("aten::reshape", "aten::softmax", "aten::sqrt", "aten::view"),
        # What `clipserve.prepack` puts in the place of `aten::linear`.
        *("mkldnn::_linear_pointwise", "quantized::linear_dynamic_fp16", INT8_OPERATOR),
        TILED_INT8_OPERATOR,
    }
)

# `torch.jit.load` reads a file without `model.json`, which is another format, from these and no others.
RECORDS = re.compile(
    r"(data|constants)\.pkl|(data|constants)/\d+|code/[\w/]+\.py(\.debug_pkl)?|extra/.*|version|byteorder"
    r"|\.data/(version|serialization_id)"
)

# Special names in the code of a traced module. Others name methods that run unasked: `__setstate__` while
# the file is loaded, hooks before and after each call.
SPECIAL_NAMES = frozenset({"__torch__", "__parameters__", "__buffers__", "__annotations__"})

# What a module's attributes are unpickled with, beside the classes in the file's own code.
GLOBALS = re.compile(
    r"torch\._utils _rebuild_tensor_v2|collections OrderedDict|torch (Float|BFloat16|Half|Long|Char)Storage"
    r"|torch\.jit\._pickle build_intlist"
    r"|__torch__(?!\.torch\.classes)\.[\w.]+ \w+"
)


def check_records(path: Path) -> None:
    """Checks that loading a TorchScript file runs nothing of its own.

    Raises:
        SpecError: it is no such file, or it might.
    """
    try:
        # The reader of `torch.jit.load` itself: another one might see other records in a prepared file.
        reader: Any = torch._C.PyTorchFileReader(str(path))
        names: list[str] = reader.get_all_records()
        if len({name.casefold() for name in names}) != len(names):
            raise _refusal(path, "two records of one name")
        for name in names:
            if not RECORDS.fullmatch(name):
                raise _refusal(path, f"a record {name!r}")
            if name.endswith(".py"):
                _check_code(path, name, reader.get_record(name))
            elif name.endswith("pkl"):
                _check_pickle(path, name, reader.get_record(name))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(f"{path}: not a readable encoder ({reason}); run 'make export'") from error


def check_operators(path: Path, module: torch.jit.ScriptModule) -> None:
    """Checks that a loaded module, when it is called, calls no operator but those of an encoder.

    Args:
        path: names the file in the error.

    Raises:
        SpecError: it calls another.
    """
    if foreign := sorted(operators_of(module) - OPERATORS):
        raise _refusal(path, f"calls of {', '.join(foreign)}")


def operators_of(module: torch.jit.ScriptModule) -> set[str]:
    """The kinds of all nodes that a call of a module may run."""
    found = set()
    graph: Any = module.inlined_graph
    blocks: list[Any] = [graph]
    while blocks:
        for node in blocks.pop().nodes():
            found.add(node.kind())
            blocks += node.blocks()
    return found


def _check_code(path: Path, name: str, code: bytes) -> None:
    text = code.decode("utf-8")
    special = set(re.findall(r"__[a-z][a-z_]*?__", text)) - SPECIAL_NAMES
    if special:
        raise _refusal(path, f"{', '.join(sorted(special))} in {name}")
    if re.search(r"torch\s*\.\s*classes", text):
        raise _refusal(path, f"a class of PyTorch's own in {name}")


def _check_pickle(path: Path, name: str, content: bytes) -> None:
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise _refusal(path, f"{operation.name} in {name}")
        if operation.name == "GLOBAL" and not GLOBALS.fullmatch(str(argument)):
            raise _refusal(path, f"{argument} in {name}")


def _refusal(path: Path, what: str) -> SpecError:
    return SpecError(
        f"{path}: refused before it ran: it holds {what}, which no encoder of clipserve's has; run "
        "'make export', and load no encoder file that you do not trust"
    )
