"""What is published, for which device and in which precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clipserve import hardware
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder, load_torchscript
from clipserve.encoder_spec import (
    PARITY_BOUNDS,
    Modality,
    ParityBound,
    Precision,
    artifact_sha256,
    read_spec,
)
from clipserve.errors import ExportError, ParityError
from export_scripts import publish
from export_scripts.checkpoints.loading import load_pair
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.formats.torchscript import device_constants
from export_scripts.publish import Made, check_device, export_encoder
from tests.export_scripts.exports import (
    CPU,
    LAYOUTS,
    PICTURES,
    TEXTS,
    Pairs,
    embed_pictures,
    embed_texts,
    empty,
    rebuilt,
    unit,
)

# torch's own filter for warnings about its own code, which pytest's filters replace. (Tracing an embedding
# that knows its padding gives one.) Warnings about ours stay errors.
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn.functional")


@pytest.mark.parametrize("modality", ["image", "text"])
def test_published_files(modality: Modality, pair: CheckpointPair, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "new folder"
    spec = export_encoder(pair, modality, "cpu", "fp32", folder)
    path = folder / f"{spec.stem}.pt"
    assert sorted(p.name for p in folder.iterdir()) == [f"{spec.stem}.json", f"{spec.stem}.pt"]
    assert read_spec(path) == spec
    assert path.with_suffix(".json").read_text(encoding="utf-8") == spec.to_json()
    assert artifact_sha256(path) == spec.artifact_sha256
    checkpoint = pair.image if modality == "image" else pair.text
    assert (spec.checkpoint, spec.checkpoint_sha256) == (checkpoint.name, checkpoint.checkpoint_sha256)
    assert (spec.model_id, spec.space_id) == (pair.model_id, pair.space_id)
    assert spec.logit_scale == pair.image.logit_scale
    assert set(spec.versions) == {
        "torch", "transformers", "sentence-transformers", "tokenizers", "pillow", "numpy", "python",
    }  # fmt: skip
    assert spec.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_export_again_replaces(pair: CheckpointPair, tmp_path: Path) -> None:
    first = export_encoder(pair, "text", "cpu", "fp32", tmp_path)
    other = rebuilt(pair, "text", lambda encoder: encoder)
    second = export_encoder(replace(other, model_id="clip"), "text", "cpu", "fp32", tmp_path)
    assert first.stem == second.stem
    assert len(list(tmp_path.iterdir())) == 2
    assert read_spec(tmp_path / f"{second.stem}.pt") == second


@pytest.mark.parametrize("modality", ["image", "text"])
def test_unnormalized_export(modality: Modality, pair: CheckpointPair, tmp_path: Path) -> None:
    spec = export_encoder(pair, modality, "cpu", "fp32", tmp_path, normalized=False)
    assert spec.normalized is False
    path = tmp_path / f"{spec.stem}.pt"
    if modality == "image":
        found, expected = embed_pictures(ExportedImageEncoder(path, CPU)), pair.image.reference(PICTURES)
    else:
        found, expected = (
            embed_texts(ExportedTextEncoder(path, CPU), TEXTS),
            pair.text.reference_encode(TEXTS),
        )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() > 0.01


@pytest.mark.parametrize("modality", ["image", "text"])
def test_original_stays_as_it_is(modality: Modality, clip_folder: Path, tmp_path: Path) -> None:
    """The encoder shares weights with its original, which bf16 must not round."""
    pair = load_pair(str(clip_folder))
    before = pair.text.reference_encode(TEXTS), pair.image.reference(PICTURES)
    export_encoder(pair, modality, "cpu", "bf16", tmp_path)
    assert np.array_equal(pair.text.reference_encode(TEXTS), before[0])
    assert np.array_equal(pair.image.reference(PICTURES), before[1])
    assert (
        export_encoder(pair, modality, "cpu", "fp32", tmp_path).checkpoint_sha256
        == read_spec(tmp_path / f"clip-{modality}-cpu-bf16.pt").checkpoint_sha256
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", None])
def test_cuda_without_a_gpu(precision: Precision | None, pair: CheckpointPair, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export_encoder(pair, "image", "cuda", precision, tmp_path / "store")
    assert str(caught.value) == (
        "DEVICE=cuda: this PyTorch sees no CUDA device; run 'make export DEVICE=cpu', or run it on a machine "
        "with a GPU and a CUDA build of PyTorch"
    )
    assert not (tmp_path / "store").exists()


def test_fp16_on_a_cpu(pair: CheckpointPair, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="PRECISION=fp16: DEVICE=cpu takes auto, fp32, bf16"):
        export_encoder(pair, "image", "cpu", "fp16", tmp_path)
    assert empty(tmp_path)


def test_devices_and_precisions_that_go_together() -> None:
    allowed: tuple[Precision | None, ...] = ("fp32", "bf16", None)
    for precision in allowed:
        check_device("cpu", precision)
    with pytest.raises(ExportError, match="takes auto"):
        check_device("cpu", "int8")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("native", "seconds", "expected", "made"),
    [
        (True, {"fp32": 2.0, "bf16": 1.0}, "bf16", ["fp32", "bf16"]),
        (True, {"fp32": 1.0, "bf16": 2.0}, "fp32", ["fp32", "bf16"]),
        (False, {"fp32": 2.0, "bf16": 1.0}, "fp32", ["fp32"]),
    ],
)
def test_auto_takes_the_fastest(
    native: bool,
    seconds: dict[str, float],
    expected: str,
    made: list[str],
    pair: CheckpointPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed = []

    def stopwatch(export: object, made: Made, *_: object) -> float:
        timed.append(read_spec(made.path).precision)
        return seconds[timed[-1]]

    monkeypatch.setattr(hardware, "cpu_has_native_bf16", lambda: native)
    monkeypatch.setattr(publish.Export, "_seconds", stopwatch)
    spec = export_encoder(pair, "text", "cpu", None, tmp_path)
    assert (spec.precision, timed) == (expected, made)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{spec.stem}.json", f"{spec.stem}.pt"]


def test_auto_takes_no_precision_beyond_its_bound(
    pair: CheckpointPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cpu_has_native_bf16", lambda: True)
    monkeypatch.setattr(
        publish.Export, "_seconds", lambda export, made, *_: 0.0 if "bf16" in made.path.name else 9.0
    )
    monkeypatch.setitem(PARITY_BOUNDS, "bf16", ParityBound(None, 1.1))
    assert export_encoder(pair, "text", "cpu", None, tmp_path).precision == "fp32"
    # Float32 has nothing to fall back to.
    monkeypatch.setitem(PARITY_BOUNDS, "fp32", ParityBound(-1.0, None))
    with pytest.raises(ParityError, match="fp32"):
        export_encoder(pair, "text", "cpu", None, tmp_path / "store")
    assert empty(tmp_path / "store")


def test_auto_really_measures(pair: CheckpointPair, tmp_path: Path) -> None:
    spec = export_encoder(pair, "text", "cpu", None, tmp_path)
    assert spec.precision in ("fp32", "bf16")
    assert (tmp_path / f"{spec.stem}.pt").is_file()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", None])
@pytest.mark.parametrize(
    ("layout", "modality"), [*[(layout, "text") for layout in LAYOUTS], ("clip", "image")]
)
def test_cuda_export(
    layout: str, modality: Modality, precision: Precision | None, pairs: Pairs, tmp_path: Path
) -> None:
    pair = pairs[layout]
    spec = export_encoder(pair, modality, "cuda", precision, tmp_path)
    assert spec.device == "cuda"
    assert spec.precision in ("fp32", "fp16")
    assert precision in (None, spec.precision)
    assert spec.space_id == pair.space_id
    path, device = tmp_path / f"{spec.stem}.pt", torch.device("cuda", 0)
    module = load_torchscript(path, device)
    assert device_constants(module) == []
    assert {p.device.type for p in module.parameters()} == {"cuda"}
    if modality == "image":
        found = embed_pictures(ExportedImageEncoder(path, device))
        expected = unit(pair.image.reference(PICTURES))
    else:
        found = embed_texts(ExportedTextEncoder(path, device), TEXTS)
        expected = unit(pair.text.reference_encode(TEXTS))
    if spec.precision == "fp32":
        assert np.abs(found - expected).max() <= 1e-5
    else:
        assert (unit(found) * expected).sum(1).min() >= 0.999


@pytest.mark.gpu
def test_bf16_on_a_gpu(pair: CheckpointPair, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="PRECISION=bf16: DEVICE=cuda takes auto, fp32, fp16"):
        export_encoder(pair, "image", "cuda", "bf16", tmp_path)
