"""What is published, for which device and in which precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipserve import hardware
from clipserve.certificate import ParityBound
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import (
    PARITY_BOUNDS,
    Modality,
    Precision,
    artifact_sha256,
    read_spec,
)
from clipserve.errors import ExportError, ParityError
from clipserve.hardware import native_precisions
from clipserve.loading import load_torchscript
from export_scripts import publish
from export_scripts.checkpoints.loading import load_pair
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.formats.torchscript import device_constants
from export_scripts.publish import Made, check_device, export_encoder, export_encoders
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
    assert spec.score == pair.image.score
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


@pytest.mark.parametrize("modality", ["image", "text"])
def test_half_weights_take_half_the_file(modality: Modality, pair: CheckpointPair, tmp_path: Path) -> None:
    full, half = (export_encoder(pair, modality, "cpu", of, tmp_path) for of in ("fp32", "fp16"))
    assert (half.device, half.precision, half.space_id) == ("cpu", "fp16", full.space_id)
    module = load_torchscript(tmp_path / half.file_name, CPU)
    weights = dict(module.named_parameters())
    # A fortieth of a full-size encoder's weights, more of this one's.
    pixels = weights.pop("patches.projection.weight", None)
    assert pixels is None or pixels.dtype == torch.float32
    matrices = [p for p in weights.values() if p.dtype == torch.float16]
    kept = [p for p in weights.values() if p.dtype != torch.float16]
    assert {p.dtype for p in kept} == {torch.float32}
    # Biases, norms and positions, a fiftieth of a full-size encoder's weights.
    assert sum(p.numel() for p in matrices) > 0.9 * sum(p.numel() for p in (*matrices, *kept))


def with_weight(value: float) -> Callable[[nn.Module], nn.Module]:
    """One weight of the head is this, and its output the same: another one takes it away."""

    def change(encoder: nn.Module) -> nn.Module:
        changed = copy.deepcopy(encoder)
        with torch.no_grad():
            changed.projection.weight[0, 0] = value  # type: ignore[operator, union-attr]
        return changed

    return change


@pytest.mark.parametrize("value", [65505.0, -7e4, float("inf"), float("nan")])
def test_a_weight_beyond_half_precision_is_refused(
    value: float, pair: CheckpointPair, tmp_path: Path
) -> None:
    with pytest.raises(ParityError) as caught:
        export_encoder(rebuilt(pair, "image", with_weight(value)), "image", "cpu", "fp16", tmp_path)
    assert str(caught.value) == (
        f"image encoder: PRECISION=fp16: a weight of projection is {abs(value):g}, half precision holds up "
        "to 65504; run 'make export PRECISION=fp32'"
    )
    assert empty(tmp_path)


class Shrunken(nn.Module):
    """The same function with the head's weights so small that half precision keeps few of their digits."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = copy.deepcopy(inner)
        with torch.no_grad():
            self.inner.projection.weight *= 2.0**-18  # type: ignore[operator, union-attr]

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.inner(*inputs)  # type: ignore[no-any-return]


def test_weights_too_small_for_half_precision_are_beyond_the_bound(
    pair: CheckpointPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings are normalised, so that a factor in the head is nothing to the fp32 encoder."""
    tiny = rebuilt(pair, "text", Shrunken)
    with pytest.raises(ParityError, match="text encoder in fp16 on cpu: max-abs "):
        export_encoder(tiny, "text", "cpu", "fp16", tmp_path)
    assert empty(tmp_path)
    monkeypatch.setattr(hardware, "cpu_has_native_bf16", lambda: False)
    assert export_encoder(tiny, "text", "cpu", None, tmp_path).precision == "fp32"


def test_devices_and_precisions_that_go_together() -> None:
    allowed: tuple[Precision | None, ...] = ("fp32", "bf16", "fp16", "int8", None)
    for precision in allowed:
        check_device("cpu", precision)
    with pytest.raises(ExportError, match="takes auto"):
        check_device("cpu", "fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("native", "packed", "seconds", "expected"),
    [
        (True, True, {"fp32": (2, 9), "bf16": (1, 5), "fp16": (1, 8)}, "bf16"),
        (True, True, {"fp32": (1, 5), "bf16": (2, 9), "fp16": (3, 9)}, "fp32"),
        (False, True, {"fp32": (2, 9), "fp16": (1, 9.9)}, "fp16"),
        # As fast, and half as large.
        (False, True, {"fp32": (2, 9), "fp16": (2, 9.3)}, "fp16"),
        (False, True, {"fp32": (2, 9), "fp16": (2, 11)}, "fp32"),
        # Cast at every call.
        (False, False, {"fp32": (2, 9)}, "fp32"),
    ],
)
def test_auto_takes_the_fastest(
    native: bool,
    packed: bool,
    seconds: dict[str, tuple[float, ...]],
    expected: str,
    pair: CheckpointPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed = []

    def stopwatch(export: object, all_made: Sequence[Made], *_: object) -> list[tuple[float, ...]]:
        timed.extend(read_spec(made.path).precision for made in all_made)
        return [seconds[precision] for precision in timed]

    monkeypatch.setattr(hardware, "cpu_has_native_bf16", lambda: native)
    monkeypatch.setattr(hardware, "cpu_has_half_weights", lambda: True)
    monkeypatch.setattr(publish.Export, "_times", stopwatch)
    (spec,) = export_encoders(pair, ["text"], "cpu", None, tmp_path, packed=packed)
    assert (spec.precision, timed) == (expected, list(seconds))
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{spec.stem}.json", f"{spec.stem}.pt"]


def test_auto_takes_no_precision_beyond_its_bound(
    pair: CheckpointPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cpu_has_native_bf16", lambda: True)
    monkeypatch.setattr(
        publish.Export,
        "_times",
        lambda export, all_made, *_: [(0.0 if "bf16" in m.path.name else 9.0,) for m in all_made],
    )
    monkeypatch.setattr(hardware, "cpu_has_half_weights", lambda: False)
    monkeypatch.setitem(PARITY_BOUNDS, "bf16", ParityBound(None, 1.1))
    assert export_encoder(pair, "text", "cpu", None, tmp_path).precision == "fp32"
    # Float32 has nothing to fall back to.
    monkeypatch.setitem(PARITY_BOUNDS, "fp32", ParityBound(-1.0, None))
    with pytest.raises(ParityError, match="fp32"):
        export_encoder(pair, "text", "cpu", None, tmp_path / "store")
    assert empty(tmp_path / "store")


def test_auto_really_measures(pair: CheckpointPair, tmp_path: Path) -> None:
    spec = export_encoder(pair, "text", "cpu", None, tmp_path)
    assert spec.precision in native_precisions("cpu")
    assert (tmp_path / f"{spec.stem}.pt").is_file()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", None])
@pytest.mark.parametrize(
    ("layout", "modality"),
    [*[(layout, "text") for layout in LAYOUTS], ("clip", "image"), ("siglip", "image")],
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
