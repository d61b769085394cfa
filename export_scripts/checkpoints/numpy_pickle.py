"""Reads pickled NumPy arrays of strangers, M-CLIP's linear heads; nothing in a file is run or believed."""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from clipserve.errors import ExportError

# What M-CLIP's linear heads may be made of, as NumPy writes it.
FLOAT_CODES = ("f2", "f4", "f8")


class _Dtype:
    """Stands for `numpy.dtype` while a linear head is unpickled: a float's size and byte order."""

    def __init__(self, code: object, *flags: object):
        if code not in FLOAT_CODES:
            raise pickle.UnpicklingError(f"numbers of type {str(code)[:20]!r}, which are no floats")
        self.name = f"<{code}"

    def __setstate__(self, state: object) -> None:
        # (version, byte order, ...): NumPy's own would take from here flags, offsets and what an item is.
        if not isinstance(state, tuple) or state[1:2] not in (("<",), (">",)):
            raise pickle.UnpicklingError("a type of numbers with more than a byte order")
        self.name = state[1] + self.name[1:]


class _Array:
    """Stands for `numpy.ndarray` while a linear head is unpickled: a dtype, a shape and bytes."""

    def __init__(self, *of: object):
        """Of `_reconstruct`'s arguments, which say nothing."""
        self.value: npt.NDArray[Any] | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array that is not in NumPy's form")
        _, shape, dtype, column_major, data = state
        self.fill(data, dtype, shape, "F" if column_major else "C")

    def fill(self, data: object, dtype: object, shape: object, order: object) -> None:
        """Takes contents that fit each other, and copies them."""
        if not (
            isinstance(data, bytes)
            and isinstance(dtype, _Dtype)
            and isinstance(shape, tuple)
            and all(type(edge) is int and edge >= 0 for edge in shape)
            and len(shape) <= 3
            and order in ("C", "F")
        ):
            raise pickle.UnpicklingError("an array that is not a shape and bytes of floats")
        numbers = np.frombuffer(data, np.dtype(dtype.name))
        if math.prod(shape) != numbers.size:
            raise pickle.UnpicklingError(f"{numbers.size} numbers for shape {shape}")
        self.value = numbers.reshape(shape, order="F" if order == "F" else "C")


def _from_buffer(data: object, dtype: object, shape: object, order: object, *axes: object) -> _Array:
    """Stands for NumPy's `_frombuffer`, of pickle protocol 5."""
    if any(axis is not None for axis in axes):
        raise pickle.UnpicklingError("an array with its axes in another order")
    array = _Array()
    array.fill(data, dtype, shape, order)
    return array


def _encode(text: object, encoding: object) -> bytes:
    """Stands for `_codecs.encode`, with which protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes that are not written as latin1")
    return text.encode("latin1")


# Pure Python: the compiled one reserves memory for places that a few bytes announce.
class _ArrayUnpickler(pickle._Unpickler):
    """Knows what NumPy arrays of floats are pickled with, by stand-ins of its own, and nothing else.

    None of NumPy's own functions runs on what a file says: their `__setstate__` trusts it with pointers.
    """

    STAND_INS: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.numeric", "_frombuffer"): _from_buffer,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("_codecs", "encode"): _encode,
    }

    # Bytes, which are read and so bounded by the file: a bytearray is made as long as announced.
    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
    }

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in.

        Raises:
            UnpicklingError: there is none.
        """
        try:
            return self.STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which is no array") from None


def read_linear_head(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """M-CLIP's `[weight [in, out], bias [out]]`, floats of 2, 4 or 8 bytes.

    Raises:
        ExportError: anything but two float arrays that fit each other.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:
        # A hostile or damaged pickle can raise anything; none of its code has run.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ExportError(f"{path}: refused, not a pickle of two arrays: {reason}") from error
    items = content if isinstance(content, list | tuple) else ()
    arrays = [item.value for item in items if isinstance(item, _Array) and item.value is not None]
    if not len(items) == len(arrays) == 2:
        raise ExportError(f"{path}: refused, not a pickle of two arrays")
    weight, bias = arrays
    if weight.ndim != 2 or bias.shape != weight.shape[1:]:
        raise ExportError(f"{path}: refused, should hold a [in, out] weight and an [out] bias")
    return weight, bias
