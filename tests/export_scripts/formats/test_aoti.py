"""Packages compiled by AOTInductor: where they load, and where they are refused."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import SPEC_FILE, TOKENIZER_FILE, read_extra_file, read_spec
from clipserve.errors import ExportError, SpecError
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.formats import FORMATS, aoti
from export_scripts.publish import check_device
from tests.conftest import ExportedAs
from tests.export_scripts.exports import CPU
from tests.http.repack import repack


@pytest.mark.full
def test_a_compiled_package_checks_pixels_when_it_is_told_to(exported_as: ExportedAs) -> None:
    """CASES 16, as docs/formats.md says it of other programs; the variable is read at the first call."""
    path = exported_as("image", "aoti", "fp32")
    code = f"""
import torch
from torch._inductor import aoti_load_package
module = aoti_load_package({str(path)!r})
print(module(torch.zeros(1, 3, 48, 48, dtype=torch.uint8)).shape)
for pixels in (torch.rand(1, 3, 48, 48), torch.zeros(1, 48, 48, 3, dtype=torch.uint8)):
    try:
        module(pixels)
    except RuntimeError:
        print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "AOTI_RUNTIME_CHECK_INPUTS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["torch.Size([1, 32])", "refused", "refused"]


@pytest.fixture
def package(exported_as: ExportedAs, tmp_path: Path) -> Path:
    """A text package of one's own."""
    path = exported_as("multilingual", "aoti", "fp32")
    return Path(shutil.copyfile(path, tmp_path / "renamed.pt2"))


def other_spec(path: Path, target: Path, **fields: Any) -> Path:
    text = dataclasses.replace(read_spec(path), **fields).to_json()
    return repack(path, target, {f"extra/{SPEC_FILE}": lambda _: text.encode()})


def test_package_is_loaded_under_another_name(package: Path, pair: CheckpointPair) -> None:
    encoder = ExportedTextEncoder(package, CPU)
    tokens = encoder.tokenizer.pad([encoder.tokenizer.tokenize(text).ids for text in ("", "a b c", "két")])
    expected = pair.text.reference_encode(["", "a b c", "két"])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.embed(*tokens), expected, atol=1e-5)


def test_package_for_another_cpu_is_refused(package: Path, tmp_path: Path) -> None:
    path = other_spec(package, tmp_path / "other.pt2", cpu_capability="x86_64 avx2 avx10_9")
    with pytest.raises(SpecError) as caught:
        ExportedTextEncoder(path, CPU)
    message = str(caught.value)
    assert "compiled for a CPU with x86_64 avx2 avx10_9, this one (" in message
    assert "lacks avx10_9; run 'make export FORMAT=aoti' on this machine, or 'make export'" in message
    with pytest.raises(SpecError, match="lacks sparc"):
        ExportedTextEncoder(other_spec(package, tmp_path / "sparc.pt2", cpu_capability="sparc"), CPU)


def test_package_with_a_changed_byte_is_refused(package: Path, tmp_path: Path) -> None:
    def change(library: bytes) -> bytes:
        return library[:-1] + bytes([library[-1] ^ 1])

    path = repack(package, tmp_path / "changed.pt2", {".wrapper.so": change})
    with pytest.raises(SpecError, match=r"changed\.pt2: changed since its export: SHA-256 .*"):
        ExportedTextEncoder(path, CPU)


def test_package_that_pytorch_cannot_load_is_refused(tmp_path: Path) -> None:
    from clipserve.loading import load_aoti

    path = tmp_path / "no-code.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("no-code/archive_format", "pt2")
    with pytest.raises(SpecError, match=r"no-code\.pt2: PyTorch .* cannot load this package .*FORMAT=aoti"):
        load_aoti(path, CPU)


def test_package_needs_no_compiler_and_leaves_nothing(package: Path, tmp_path: Path) -> None:
    """As a worker loads it, in a process of its own that finds no program at all."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = f"""
import sys, torch
from pathlib import Path
from clipserve.encoder import ExportedTextEncoder
torch.set_num_threads(1)
encoder = ExportedTextEncoder(Path({str(package)!r}), torch.device("cpu"))
tokens = encoder.tokenizer.pad([encoder.tokenizer.tokenize("a").ids] * 3)
print(encoder.embed(*tokens).shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        # The folder that it runs in is on its path.
        env={
            "PATH": "",
            "TMPDIR": str(temporary),
            "HOME": str(tmp_path),
        },
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "(3, 32)\n"), done.stderr
    assert list(temporary.rglob("*.so")) == []


def test_no_compiler() -> None:
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    try:
        # Not monkeypatch, after which the option would be gone.
        with config.patch({"cpp.cxx": "no-such-compiler"}), pytest.raises(ExportError) as caught:
            check_device("cpu", "fp32", "aoti")
    finally:
        cpp_builder.cpp_compiler_search.cache_clear()
    assert str(caught.value).startswith("FORMAT=aoti: no C++ compiler here (g++, or what CXX names); install")


def test_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aoti.platform, "machine", lambda: "riscv64")
    with pytest.raises(ExportError, match="FORMAT=aoti: this machine is riscv64"):
        FORMATS["aoti"].check()


@pytest.mark.full
def test_image_package_serves(exported_as: ExportedAs) -> None:
    encoder = ExportedImageEncoder(exported_as("image", "aoti", "fp32"), CPU)
    assert encoder.embed([np.zeros((3, 48, 48), np.uint8)] * 3).shape == (3, 32)
    with pytest.raises(SpecError, match=r"carries no tokenizer\.json"):
        read_extra_file(encoder.path, TOKENIZER_FILE)
