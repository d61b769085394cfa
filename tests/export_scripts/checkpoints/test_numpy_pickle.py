"""Pickled heads of strangers: ATTACKS B3, and whatever else a pickle can hold."""

from __future__ import annotations

import contextlib
import copyreg
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipserve.errors import ExportError
from export_scripts.checkpoints import numpy_pickle
from tests.export_scripts.checkpoints.edits import Vary, text_refusal


def call(module: str, name: str, *arguments: str) -> bytes:
    """A pickle that calls `module.name` with texts when it is loaded."""
    pushed = b"".join(b"V" + argument.encode("raw_unicode_escape") + b"\n" for argument in arguments)
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n(" + pushed + b"tR."


def call_with_names(module: str, name: str, argument: str) -> bytes:
    """Likewise, with an empty dict after the text."""
    return call(module, name, argument).removesuffix(b"tR.") + b"(dtR."


def hostile(mark: Path) -> dict[str, bytes]:
    touch, python = f"touch {mark}", f"open({str(mark)!r}, 'w').close()"
    return {
        "os.system": call("os", "system", touch),
        "posix.system": call("posix", "system", touch),
        "os.popen": call("os", "popen", touch),
        "subprocess": call("subprocess", "getoutput", touch),
        "eval": call("builtins", "eval", python),
        "exec": call("builtins", "exec", python),
        "eval by its old name": call("__builtin__", "eval", python),
        "import": call("builtins", "__import__", "antigravity"),
        "getattr": call("builtins", "getattr", "x", "upper"),
        "numpy's runstring": call_with_names("numpy.testing._private.utils", "runstring", python),
        "numpy.load": call("numpy", "load", str(mark)),
        "numpy.savetxt": call("numpy", "savetxt", str(mark), "x"),
        "a method of an admitted class": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        "a module of an admitted module": call("numpy", "ctypeslib.load_library", "x", "y"),
        "an admitted name of another module": call("os", "dtype", "x"),
        "torch.load": call("torch", "load", str(mark)),
        "torch's storage": call("torch.storage", "_load_from_bytes", "x"),
        "torch.hub": call("torch.hub", "load", "x", "y"),
        "copyreg": call("copyreg", "__newobj__", "x"),
        "behind a plausible head": (
            pickle.dumps([np.ones((48, 32), np.float32)], protocol=3)[:-2]
            + call("os", "system", touch)[:-1] + b"e."
        ),
        "extension registry": b"\x80\x02\x82\x01.",
        "persistent id": b"Pabc\n.",
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(hostile(Path())))
def test_hostile_heads_are_refused_and_not_run(
    kind: str, m_clip_bert_folder: Path, vary: Vary, mark: Path
) -> None:
    head = hostile(mark)[kind]
    folder = vary(m_clip_bert_folder, lambda folder: next(folder.glob("*.pkl")).write_bytes(head))
    message = text_refusal(folder)
    assert "refused, not a pickle of two arrays" in message
    # Stopped at the name, not by what came of it.
    assert "which is no array" in message or kind in ("extension registry", "persistent id")
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["os.system", "eval", "numpy's runstring", "subprocess", "numpy.savetxt"])
def test_hostile_heads_would_run_elsewhere(kind: str, mark: Path) -> None:
    """What the test above is worth: the standard unpickler does run them."""
    with contextlib.suppress(ValueError):  # savetxt makes its file, then finds that a text is no array
        pickle.loads(hostile(mark)[kind])
    assert mark.exists()


GOOD = np.ones((48, 32), np.float32), np.ones(32, np.float32)


@pytest.mark.parametrize(
    "content",
    [
        {"weight": GOOD[0], "bias": GOOD[1]}, [GOOD[0]], [*GOOD, GOOD[1]], GOOD[0], 5, None, "ab", [1, 2],
        [GOOD[0].tolist(), GOOD[1].tolist()], [GOOD[0], np.ones(31, np.float32)],
        [GOOD[0], np.ones((1, 32), np.float32)],
        [GOOD[0][0], GOOD[1]], [GOOD[0][None], GOOD[1]], [GOOD[0], np.float32(1)], [GOOD[1], GOOD[0]],
        [GOOD[0].astype(int), GOOD[1]], [GOOD[0], GOOD[1].astype(int)], [GOOD[0].astype(complex), GOOD[1]],
        [GOOD[0].astype(str), GOOD[1]], [GOOD[0].astype(object), GOOD[1]], [GOOD[0].astype(bool), GOOD[1]],
    ],
    ids=lambda content: str(type(content).__name__),
)  # fmt: skip
def test_heads_of_another_shape_are_refused(content: Any, m_clip_bert_folder: Path, vary: Vary) -> None:
    folder = vary(
        m_clip_bert_folder, lambda folder: next(folder.glob("*.pkl")).write_bytes(pickle.dumps(content))
    )
    assert "refused" in text_refusal(folder)


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", b"\x80\x04", pickle.dumps(list(GOOD))[:-500]], ids=len
)
def test_damaged_heads_are_refused(content: bytes, m_clip_bert_folder: Path, vary: Vary) -> None:
    folder = vary(m_clip_bert_folder, lambda folder: next(folder.glob("*.pkl")).write_bytes(content))
    assert "refused, not a pickle of two arrays" in text_refusal(folder)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"], ids=str)
def test_heads_of_every_pickle_protocol(protocol: int, dtype: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(6, 4)).astype(dtype), rng.normal(size=4).astype(dtype)
    path = tmp_path / "head.pkl"
    for weight_order in (weight, np.asfortranarray(weight)):
        path.write_bytes(pickle.dumps([weight_order, bias], protocol=protocol))
        found = numpy_pickle.read_linear_head(path)
        np.testing.assert_array_equal(found[0], weight)
        np.testing.assert_array_equal(found[1], bias)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3])
def test_heads_of_old_numpy_are_read(protocol: int, tmp_path: Path) -> None:
    """The published one was written when NumPy's core had another name."""
    data = pickle.dumps(list(GOOD), protocol=protocol)
    assert b"numpy._core.multiarray" in data
    path = tmp_path / "head.pkl"
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert [array.shape for array in numpy_pickle.read_linear_head(path)] == [(48, 32), (32,)]


def test_extension_registry_is_no_way_in() -> None:
    """The pickle of the extension registry above is only hostile where a code is registered; none is."""
    assert copyreg._inverted_registry == {}  # type: ignore[attr-defined]


def flagged_dtype() -> bytes:
    """ATTACKS B3: a float's dtype that is told to be one of objects: NumPy takes the numbers for pointers."""
    array = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02f8\x89\x88\x87Rq\x01"
    state = b"(K\x01K\x01\x85" + dtype + b"\x89U\x08" + b"A" * 8 + b"tb"
    flags = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"
    return b"\x80\x02](" + array + state + b"h\x01" + flags + b"e."


def head_of(dtype: bytes, shape: bytes = b"K\x02K\x02\x86", data: bytes = b"\0" * 16) -> bytes:
    """A list of one array, pickled by hand: `dtype` makes the dtype, `shape` the shape."""
    array = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    content = b"B" + len(data).to_bytes(4, "little") + data
    return b"\x80\x03](" + array + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb" + b"e."


F4 = b"cnumpy\ndtype\nU\x02f4\x89\x88\x87R"


MALFORMED = {
    "dtype with flags": flagged_dtype(),
    "objects": head_of(F4.replace(b"f4", b"O8")),
    "void": head_of(F4.replace(b"f4", b"V4")),
    "integers": head_of(F4.replace(b"f4", b"i4")),
    "extended floats": head_of(F4.replace(b"U\x02f4", b"U\x03f16")),
    "fields": head_of(b"cnumpy\ndtype\n](U\x01aU\x02f4\x86e\x85R"),
    "dtype state with flags first": head_of(F4 + b"(K\x03U\x01|NNNK\x08K\x01K\x3ftb"),
    "dtype state that is no tuple": head_of(F4 + b"}b"),
    "dtype that is a text": head_of(b"U\x02f4"),
    "negative edge": head_of(F4, b"J\xff\xff\xff\xffJ\xfc\xff\xff\xff\x86"),
    "edges beyond the data": head_of(F4, b"K\x02K\x03\x86"),
    "edges whose product overflows": head_of(F4, b"\x8a\x09" + bytes(8) + b"\x01K\x02\x86"),
    "edge that is a bool": head_of(F4, b"\x88K\x04\x86"),
    "edge that is a text": head_of(F4, b"U\x012U\x012\x86"),
    "many edges": head_of(F4, b"(" + b"K\x01" * 99 + b"K\x04t"),
    "bytes that are a text": b"\x80\x02](" + call("_codecs", "encode", "a", "rot13")[:-1] + b"e.",
    "announced bytes": b"\x80\x05\x96" + (1 << 28).to_bytes(8, "little") + b".",
    "announced place": b"\x80\x04]r\xff\xff\xff\x7f(e.",
    "state twice": head_of(F4)[:-2] + b"h\x00e.",
    "array without contents": b"\x80\x02](cnumpy._core.multiarray\n_reconstruct\n)Rcnumpy\nndarray\n)Re.",
    "the stand-ins themselves": b"\x80\x02](cnumpy\nndarray\ncnumpy\ndtype\ne.",
    "attributes by state": head_of(F4)[:-2] + b"}U\x05valueK\x01sbe.",
}  # fmt: skip


@pytest.mark.parametrize("kind", list(MALFORMED))
def test_malformed_heads_are_refused(kind: str, tmp_path: Path) -> None:
    """ATTACKS B3: an array is a shape and bytes of floats; nothing of NumPy's reads what the file says.

    Nor is memory taken for what a few bytes announce.
    """
    path = tmp_path / "head.pkl"
    path.write_bytes(MALFORMED[kind])
    tracemalloc.start()
    try:
        with pytest.raises(ExportError, match="refused, not a pickle of two arrays") as caught:
            numpy_pickle.read_linear_head(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_numpy_believes_a_pickle() -> None:
    """What the test above is worth; in a process of its own, which the objects at 'AAAAAAAA' may end."""
    code = (
        "import os, pickle, sys\n"
        "array, dtype = pickle.loads(sys.stdin.buffer.read()), None\n"
        "print(array[1].hasobject, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=flagged_dtype(), capture_output=True, check=False
    )
    assert done.stdout.strip() == b"True"


def test_nothing_of_numpy_runs_in_a_pickle() -> None:
    """ATTACKS B3: every name that a head may call is ours."""
    stand_ins = numpy_pickle._ArrayUnpickler.STAND_INS
    assert {value.__module__ for value in stand_ins.values()} == {numpy_pickle.__name__}
