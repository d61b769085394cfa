"""What lies in a store, and which of its files a worker takes."""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from clipserve import hardware
from clipserve.encoder_spec import SPEC_FILE, Precision, read_spec
from clipserve.errors import ExportError, SpecError
from clipserve.hardware import cpu_capability
from clipserve.store import Store, check_pair
from export_scripts.packages.archive import build_archives
from tests.conftest import ExportedAs

MODALITIES = ("image", "text")

Paths = dict[str, Path]


@pytest.fixture
def paths(image_path: Path, text_path: Path) -> Paths:
    return {"image": image_path, "text": text_path}


def best(folder: Path, modality: str, device: str = "cpu", model: str | None = None) -> Path:
    """The file that a worker takes."""
    return Store.read(folder).model(model).best(modality, device).path


def placed(folder: Path, path: Path, **fields: Any) -> Path:
    """An encoder file of which only the spec is real; choosing reads nothing else."""
    spec = dataclasses.replace(read_spec(path), **fields)
    target = folder / spec.file_name
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(f"{spec.stem}/extra/{SPEC_FILE}", spec.to_json())
    return target


@pytest.mark.parametrize(
    ("device", "native_bf16", "present", "expected"),
    [
        ("cpu", True, ["cpu-fp32", "cpu-bf16"], "cpu-bf16"),
        ("cpu", False, ["cpu-fp32", "cpu-bf16"], "cpu-fp32"),
        ("cpu", False, ["cpu-fp32", "cpu-fp16", "cpu-bf16"], "cpu-fp16"),
        ("cpu", True, ["cpu-fp32", "cpu-fp16", "cpu-bf16"], "cpu-bf16"),
        ("cpu", True, ["cpu-fp32", "cpu-fp16"], "cpu-fp16"),
        ("cpu", True, ["cpu-fp32"], "cpu-fp32"),
        ("cpu", False, ["cpu-bf16"], "cpu-bf16"),
        ("cpu", True, ["cpu-bf16", "cuda-fp16"], "cpu-bf16"),
        ("cpu", False, ["cpu-fp32", "cuda-fp16", "cuda-fp32"], "cpu-fp32"),
        ("cuda", False, ["cpu-bf16", "cpu-fp32", "cuda-fp16", "cuda-fp32"], "cuda-fp16"),
        ("cuda", True, ["cpu-bf16", "cuda-fp16", "cuda-fp32"], "cuda-fp16"),
        ("cuda", True, ["cpu-bf16", "cuda-fp32"], "cuda-fp32"),
        ("cuda", True, ["cuda-bf16", "cuda-fp32"], "cuda-fp32"),
    ],
)
def test_variant_for_the_placed_onand_the_cpu(
    device: str,
    native_bf16: bool,
    present: list[str],
    expected: str,
    paths: Paths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "cpu_has_native_bf16", lambda: native_bf16)
    monkeypatch.setattr(hardware, "cpu_has_half_weights", lambda: True)
    made = {
        (modality, f"{placed_on}-{precision}"): placed(
            tmp_path, paths[modality], device=placed_on, precision=precision
        )
        for placed_on, precision in (name.split("-") for name in present)
        for modality in MODALITIES
    }
    for modality in MODALITIES:
        assert best(tmp_path, modality, device) == made[modality, expected]


@pytest.mark.parametrize(
    ("present", "found"),
    [
        ([], "no encoder at all"),
        (["image-cpu-fp32", "text-cpu-fp32"], "clip-image-cpu-fp32.pt, clip-text-cpu-fp32.pt"),
        (["image-cuda-fp32"], "clip-image-cuda-fp32.pt"),
    ],
)
def test_no_variant_for_the_device(present: list[str], found: str, paths: Paths, tmp_path: Path) -> None:
    for name in present:
        modality, device, precision = name.split("-")
        placed(tmp_path, paths[modality], device=device, precision=precision)
    with pytest.raises(
        SpecError, match=f"no text encoder for cuda here, only {found}; run 'make export DEVICE=cuda'"
    ):
        best(tmp_path, "text", "cuda")


def test_of_two_models_none_is_taken_silently(paths: Paths, tmp_path: Path) -> None:
    """CASES 14: the one rule of the store, for a worker as for the commands."""
    for modality in MODALITIES:
        placed(tmp_path, paths[modality])
        placed(tmp_path, paths[modality], model_id="another")
    for modality in MODALITIES:
        with pytest.raises(SpecError, match=r"holds 2 models \(another, clip\); say which: MODEL=another"):
            best(tmp_path, modality)
        for model in ("another", "clip"):
            chosen = best(tmp_path, modality, model=model)
            assert chosen.name == f"{model}-{modality}-cpu-fp32.pt"
    with pytest.raises(SpecError, match="no image encoder for cpu here, only "):
        best(tmp_path, "image", model="a third")


def test_damaged_file_among_variants_is_named(paths: Paths, tmp_path: Path) -> None:
    placed(tmp_path, paths["text"])
    (tmp_path / "broken.pt").write_bytes(b"")
    with pytest.raises(SpecError, match=r"broken\.pt: not a readable encoder"):
        best(tmp_path, "text")


def test_native_bf16_is_yes_or_no() -> None:
    assert isinstance(hardware.cpu_has_native_bf16(), bool)


def test_half_weights_are_multiplied_where_fbgemm_is(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is with AVX2, as `torch.cpu` tells it; without it, float32 goes first."""
    assert hardware.cpu_has_half_weights() == bool(torch.cpu.get_capabilities().get("avx2"))
    monkeypatch.setattr(hardware, "cpu_has_native_bf16", lambda: False)
    monkeypatch.setattr(hardware, "cpu_has_half_weights", lambda: False)
    full = placed(tmp_path, paths["text"])
    placed(tmp_path, paths["text"], precision="fp16")
    assert best(tmp_path, "text") == full


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_package_for_this_cpu_goes_first(
    precision: Precision, text_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipserve.hardware.cpu_has_native_bf16", lambda: True)
    traced = placed(tmp_path, text_path, precision=precision)
    assert best(tmp_path, "text") == traced
    compiled = placed(
        tmp_path, text_path, precision=precision, format="aoti", cpu_capability=cpu_capability()
    )
    assert best(tmp_path, "text") == compiled
    # The precision that the hardware multiplies counts for more.
    half = placed(tmp_path, text_path, precision="bf16")
    assert best(tmp_path, "text") == (half if precision == "fp32" else compiled)


def test_package_for_another_cpu_is_passed_over_or_named(text_path: Path, tmp_path: Path) -> None:
    placed(tmp_path, text_path, format="aoti", cpu_capability="x86_64 avx10_9")
    with pytest.raises(SpecError, match=r"clip-text-cpu-fp32\.pt2: compiled for a CPU with .* lacks avx10_9"):
        best(tmp_path, "text")
    traced = placed(tmp_path, text_path)
    assert best(tmp_path, "text") == traced


def test_onnx_alone_is_not_served(exported_as: ExportedAs, tmp_path: Path) -> None:
    for name in ("image", "multilingual"):
        path = exported_as(name, "onnx", "fp32")
        shutil.copyfile(path, tmp_path / path.name)
    with pytest.raises(
        SpecError, match=r"no encoder at all \(and clip-image-cpu-fp32\.onnx, .*ONNX Runtime and not served\)"
    ):
        best(tmp_path, "text")
    with pytest.raises(
        ExportError, match=r"no encoder that TorchServe.*fp32\.onnx are for ONNX Runtime.*make export"
    ):
        build_archives(tmp_path, None, None)


def test_check_pair(paths: Paths) -> None:
    image, text = read_spec(paths["image"]), read_spec(paths["text"])
    check_pair(image, text)
    # Device and precision are no part of a space.
    check_pair(image, dataclasses.replace(text, device="cuda", precision="fp16"))
    for other in ({"space_id": "another"}, {"embedding_dim": 33}):
        with pytest.raises(
            SpecError, match=r"clip-image-cpu-fp32 .* and clip-text-cpu-fp32 .* not of one embedding space"
        ):
            check_pair(image, dataclasses.replace(text, **other))
