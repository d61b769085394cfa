"""Encoder files of every format: one proof for all, and what is told of each."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipserve import encoder as encoder_module
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import (
    PARITY_BOUNDS,
    SPEC_FILE,
    SUFFIXES,
    TOKENIZER_FILE,
    EncoderSpec,
    FloatArray,
    Format,
    Precision,
    description_path,
    read_extra_file,
    read_spec,
)
from clipserve.errors import ExportError, ParityError, SpecError
from clipserve.hardware import cpu_capability
from clipserve.store import EncoderFile, Store
from clipserve.tokens import Tokenizer
from export_scripts.checkpoints.sentence_transformers import CheckpointPair
from export_scripts.formats import FORMATS, aoti, onnx
from export_scripts.formats.base import EncoderFormat
from export_scripts.packages.archive import build_archives
from export_scripts.parity.proof import recheck
from export_scripts.publish import check_device, export_encoder
from tests.conftest import ExportedAs
from tests.golden import OTHER_PIXELS
from tests.http.repack import repack

CPU = torch.device("cpu")


def format_of(path: Path) -> EncoderFormat:
    return next(FORMATS[name] for name, suffix in SUFFIXES.items() if path.suffix == suffix)


def read_any_spec(path: Path) -> EncoderSpec:
    return EncoderFile.read(path, format_of(path)).spec


VARIANTS: list[tuple[Format, Precision]] = [
    ("torchscript", "fp32"), ("torchscript", "bf16"), ("aoti", "fp32"), ("aoti", "bf16"), ("onnx", "fp32"),
    ("onnx", "fp16"),
]  # fmt: skip
ENCODERS = ["image", "clip", "multilingual", "m-clip-xlm-r"]

# Compiling takes half a minute of a core: one picture and one text encoder are for every day.
EVERY_DAY = [("image", "fp32"), ("multilingual", "fp32")]
BATCH_INVARIANCE = [
    pytest.param(
        name,
        format,
        precision,
        marks=[pytest.mark.full] if format == "aoti" and (name, precision) not in EVERY_DAY else [],
    )
    for name in ENCODERS
    for format, precision in VARIANTS
]

# ---- an embedding does not depend on its neighbours


def within(bound_of: Precision, found: FloatArray, expected: FloatArray) -> bool:
    """Whether embeddings `[N, D]` are as near as this precision's certificate asks."""
    cosines = (found * expected).sum(1)
    return PARITY_BOUNDS[bound_of].holds(float(np.abs(found - expected).max()), float(cosines.min()))


def inputs_of(path: Path, spec: EncoderSpec) -> list[tuple[Tensor, ...]]:
    """Inputs of one row each, none like another; texts of different lengths."""
    rng = np.random.default_rng(11)
    if spec.image is not None:
        size = (3, spec.image.crop_height, spec.image.crop_width)
        return [(torch.from_numpy(rng.integers(0, 256, (1, *size), dtype=np.uint8)),) for _ in range(4)]
    assert spec.text is not None
    definition = format_of(path).extra_file(path, TOKENIZER_FILE).decode()
    first, last = Tokenizer(definition, spec.text).tokenize("").ids
    rows = [[first, *rng.integers(10, 500, n).tolist(), last] for n in (3, 1, 9, 25)]
    return [(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.int64)) for row in rows]


def padded(rows: list[tuple[Tensor, ...]], spec: EncoderSpec, more: int) -> tuple[Tensor, ...]:
    """One batch of all rows; texts padded to the longest, and by `more` tokens."""
    if spec.text is None:
        return (torch.cat([row[0] for row in rows]),)
    length = max(row[0].shape[1] for row in rows) + more
    ids = torch.full((len(rows), length), spec.text.pad_token_id)
    mask = torch.zeros(len(rows), length, dtype=torch.int64)
    for i, (row, ones) in enumerate(rows):
        ids[i, : row.shape[1]] = row
        mask[i, : row.shape[1]] = ones
    return ids, mask


def assert_batch_invariant(path: Path) -> None:
    spec = read_any_spec(path)
    module = format_of(path).load(path, CPU)
    rows = inputs_of(path, spec)
    with torch.inference_mode():
        alone = np.concatenate([module(*row).numpy() for row in rows])
        assert alone.dtype == np.float32
        # Embeddings that are all alike would prove nothing.
        assert (alone @ alone.T).min() < 0.99
        for count, more in ((2, 0), (4, 0), (4, 40)):
            found = module(*padded(rows[:count], spec, more)).numpy()
            assert within(spec.precision, found, alone[:count]), (count, more)
        # The same row among others, at another place.
        found = module(*padded(rows[::-1], spec, 7)).numpy()[::-1]
        assert within(spec.precision, found, alone)


@pytest.mark.parametrize(("name", "format", "precision"), BATCH_INVARIANCE)
def test_batch_invariance(name: str, format: Format, precision: Precision, exported_as: ExportedAs) -> None:
    assert_batch_invariant(exported_as(name, format, precision))


class WithoutMask(nn.Module):
    """Takes padding for text."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.inner(input_ids, torch.ones_like(attention_mask))  # type: ignore[no-any-return]


def without_mask(pair: CheckpointPair) -> CheckpointPair:
    """The pair with a text encoder that averages over padding, as other exports of this model do."""
    build = pair.text.build
    return replace(pair, text=replace(pair.text, build=lambda normalized: WithoutMask(build(normalized))))


@pytest.mark.parametrize("format", ["torchscript", "onnx"])
def test_an_encoder_that_averages_over_padding_is_found(
    format: Format, pair: CheckpointPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the export's own proof, and, where that is blind, by the invariance."""
    # It has an operator that no encoder has, and would be refused for that alone.
    monkeypatch.setattr(encoder_module, "check_operators", lambda path, module: None)
    with pytest.raises(ParityError, match="nothing was published"):
        export_encoder(without_mask(pair), "text", "cpu", "fp32", tmp_path, file_format=format)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as blind:
        blind.setitem(PARITY_BOUNDS, "fp32", replace(PARITY_BOUNDS["fp32"], max_abs_diff=10.0))
        spec = export_encoder(without_mask(pair), "text", "cpu", "fp32", tmp_path, file_format=format)
    with pytest.raises(AssertionError, match=r"\(2, 0\)"):
        assert_batch_invariant(tmp_path / spec.file_name)


# ---- other pixels than an encoder takes


WANTED_PIXELS = r"pixel_values must be uint8 \[N, 3, 48, 48\], RGB, 0 to 255"


@pytest.mark.parametrize("pixels", OTHER_PIXELS.values(), ids=OTHER_PIXELS)
@pytest.mark.parametrize(
    ("format", "precision"), [("torchscript", "fp32"), ("torchscript", "bf16"), ("onnx", "fp32")]
)
def test_other_pixels_are_refused(
    format: Format, precision: Precision, pixels: Tensor, exported_as: ExportedAs
) -> None:
    """CASES 16: never another vector. An ONNX input has a type and sizes, which ONNX Runtime checks."""
    path = exported_as("image", format, precision)
    with pytest.raises(Exception, match=WANTED_PIXELS if format == "torchscript" else "INVALID_ARGUMENT"):
        format_of(path).load(path, CPU)(pixels)


@pytest.mark.parametrize("pixels", OTHER_PIXELS.values(), ids=OTHER_PIXELS)
@pytest.mark.parametrize("format", ["torchscript", "aoti"])
def test_a_worker_embeds_no_other_pixels(format: Format, pixels: Tensor, exported_as: ExportedAs) -> None:
    """CASES 16, for files that do not refuse them: compiled packages, and those from before."""
    encoder = ExportedImageEncoder(exported_as("image", format, "fp32"), CPU)
    with pytest.raises(ValueError, match=WANTED_PIXELS):
        encoder.embed(list(pixels.numpy()))


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


# ---- what is published


@pytest.mark.parametrize("format", ["aoti", "onnx"])
@pytest.mark.parametrize("name", ["image", "multilingual"])
def test_published_file(name: str, format: Format, exported_as: ExportedAs, pair: CheckpointPair) -> None:
    path = exported_as(name, format, "fp32")
    spec = read_any_spec(path)
    assert (spec.format, spec.precision, spec.file_name) == (format, "fp32", path.name)
    assert spec.cpu_capability == (cpu_capability() if format == "aoti" else None)
    assert description_path(path) == path.parent / f"{path.name}.json"
    assert description_path(path).read_text(encoding="utf-8") == spec.to_json()
    assert format_of(path).sha256(path) == spec.artifact_sha256
    assert spec.space_id == pair.space_id
    certificate = spec.certificate
    assert 0 < certificate.max_abs_diff <= 1e-5
    assert {"golden input"} < {case.name for case in certificate.cases}
    assert recheck(pair, path, spec) == certificate
    if name == "multilingual":
        assert format_of(path).extra_file(path, TOKENIZER_FILE).decode() == pair.text.tokenizer


def test_formats_lie_beside_each_other(exported_as: ExportedAs) -> None:
    paths = [exported_as("image", format, "fp32") for format in ("torchscript", "aoti", "onnx")]
    folder = paths[0].parent
    assert {path.parent for path in paths} == {folder}
    assert {path.stem for path in paths} == {"clip-image-cpu-fp32"}
    assert set(paths) <= {file.path for file in Store.read(folder, FORMATS).encoders}
    assert len({description_path(path).read_text() for path in paths}) == 3
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_onnx_is_one_file_with_names_and_dynamic_sizes(exported_as: ExportedAs) -> None:
    import onnxruntime

    path = exported_as("multilingual", "onnx", "fp32")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [o.name for o in session.get_outputs()] == ["embeddings"]
    for node in session.get_inputs():
        assert all(isinstance(size, str) for size in node.shape), node.shape
    assert set(session.get_modelmeta().custom_metadata_map) == {SPEC_FILE, TOKENIZER_FILE}


# ---- loading a package


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
    from clipserve.encoder import load_aoti

    path = tmp_path / "no-code.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("no-code/archive_format", "pt2")
    with pytest.raises(SpecError, match=r"no-code\.pt2: PyTorch .* cannot load this package .*FORMAT=aoti"):
        load_aoti(path)


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
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "(3, 32)\n"), done.stderr
    assert list(temporary.rglob("*.so")) == []


def test_archive_holds_both_kinds(exported_as: ExportedAs, tmp_path: Path) -> None:
    variants: list[tuple[Format, Precision]] = [("torchscript", "fp32"), ("aoti", "fp32"), ("onnx", "fp32")]
    for name in ("image", "multilingual"):
        for path in (exported_as(name, *variant) for variant in variants):
            for file in (path, description_path(path)):
                shutil.copyfile(file, tmp_path / file.name)
    build_archives(tmp_path, None, None)
    with zipfile.ZipFile(tmp_path / "clip_similarity.mar") as archive:
        found = {name for name in archive.namelist() if name.startswith("clip-")}
    stems = ("clip-image-cpu-fp32", "clip-text-cpu-fp32")
    assert found == {f"{stem}{suffix}" for stem in stems for suffix in (".pt", ".pt2")}
    # A description of another format does not do.
    description_path(tmp_path / f"{stems[0]}.pt2").unlink()
    with pytest.raises(SpecError, match=r"pt2\.json: missing"):
        build_archives(tmp_path, None, None)


# ---- what a format cannot have


@pytest.mark.parametrize(
    ("format", "precision", "said"),
    [
        ("onnx", "bf16", "PRECISION=bf16: DEVICE=cpu with FORMAT=onnx takes auto, fp32, fp16"),
        ("aoti", "fp16", "PRECISION=fp16: DEVICE=cpu with FORMAT=aoti takes auto, fp32, bf16"),
    ],
)
def test_precision_that_a_format_does_not_take(format: Format, precision: Precision, said: str) -> None:
    with pytest.raises(ExportError) as caught:
        check_device("cpu", precision, format)
    assert str(caught.value) == said


@pytest.mark.parametrize("format", ["aoti", "onnx"])
def test_formats_for_cpus_only(format: Format) -> None:
    with pytest.raises(ExportError, match=f"FORMAT={format}: DEVICE=cuda is not supported, DEVICE=cpu is"):
        check_device("cuda", None, format)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config, cpp_builder

    monkeypatch.setattr(config.cpp, "cxx", "no-such-compiler")
    cpp_builder.cpp_compiler_search.cache_clear()
    try:
        with pytest.raises(ExportError) as caught:
            check_device("cpu", "fp32", "aoti")
    finally:
        cpp_builder.cpp_compiler_search.cache_clear()
    assert str(caught.value).startswith("FORMAT=aoti: no C++ compiler here (g++, or what CXX names); install")


def test_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aoti.platform, "machine", lambda: "riscv64")
    with pytest.raises(ExportError, match="FORMAT=aoti: this machine is riscv64"):
        FORMATS["aoti"].check()


def test_onnx_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"FORMAT=onnx: no package 'onnxruntime' here; 'make export FORMAT"):
        check_device("cpu", "fp32", "onnx")


def test_onnx_of_more_than_a_file_holds(
    pair: CheckpointPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "ONNX_MOST_BYTES", 1000)
    with pytest.raises(ExportError, match=r"text encoder: FORMAT=onnx: .* GB of weights, one ONNX file"):
        export_encoder(pair, "text", "cpu", "fp32", tmp_path, file_format="onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["torchscript", "onnx"])
def test_machine_code_and_capability_belong_together(format: Format, text_path: Path, tmp_path: Path) -> None:
    data = json.loads(read_spec(text_path).to_json())
    for fields in ({"format": "aoti"}, {"format": format, "cpu_capability": "x86_64"}):
        with pytest.raises(SpecError, match="cpu_capability has a value that no encoder has"):
            EncoderSpec.from_json(json.dumps({**data, **fields}), "x")


def test_damaged_onnx(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(SpecError, match=r"x\.onnx: not a readable encoder"):
        read_any_spec(path)


def test_image_package_serves(exported_as: ExportedAs) -> None:
    encoder = ExportedImageEncoder(exported_as("image", "aoti", "fp32"), CPU)
    assert encoder.embed([np.zeros((3, 48, 48), np.uint8)] * 3).shape == (3, 32)
    with pytest.raises(SpecError, match=r"carries no tokenizer\.json"):
        read_extra_file(encoder.path, TOKENIZER_FILE)
