"""One proof for all formats: what holds of each, and what a format cannot have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipserve import loading
from clipserve.encoder import ExportedImageEncoder
from clipserve.encoder_spec import (
    PARITY_BOUNDS,
    TOKENIZER_FILE,
    EncoderSpec,
    FloatArray,
    Format,
    Modality,
    Precision,
    description_path,
    has_half_weights,
    parity_bound,
    read_spec,
)
from clipserve.errors import ExportError, ParityError, SpecError
from clipserve.hardware import cpu_capability
from clipserve.store import Store
from clipserve.tokens import Tokenizer
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.encoders.layers import check_pixels
from export_scripts.encoders.spelling import Spelled
from export_scripts.formats import FORMATS
from export_scripts.parity.proof import recheck
from export_scripts.parity.subjects import SUBJECTS
from export_scripts.publish import check_device, export_encoder
from standins import tiny
from tests.conftest import ExportedAs
from tests.export_scripts.exports import Pairs, format_of, read_any_spec, rebuilt
from tests.golden import OTHER_PIXELS

CPU = torch.device("cpu")

VARIANTS = [(name, precision) for name, of in FORMATS.items() for precision in of.precisions["cpu"]]

# What lies beside TorchScript files, whose name the description has.
OTHER_FORMATS = sorted(FORMATS.keys() - {"torchscript"})

ENCODERS = [
    *("image", "clip", "multilingual", "m-clip-xlm-r"),
    *("siglip-image", "siglip", "metaclip-2", "chinese-clip"),
    *("open-clip-clipa-image", "open-clip-pe-core-image"),
]

# Compiling takes half a minute of a core, and an export to ONNX ten seconds.
EVERY_DAY: dict[Format, list[tuple[str, Precision]]] = {
    "aoti": [("multilingual", "fp32")],
    "onnx": [("image", "fp32"), ("multilingual", "fp32"), ("clip", "fp16"), ("siglip-image", "fp32")],
}


def when(name: str, format: Format, precision: Precision = "fp32") -> list[pytest.MarkDecorator]:
    """The marks of a test of an exported encoder."""
    for_every_day = format not in EVERY_DAY or (name, precision) in EVERY_DAY[format]
    return [] if for_every_day else [pytest.mark.full]


BATCH_INVARIANCE = [
    pytest.param(name, format, precision, marks=when(name, format, precision))
    for name in ENCODERS
    for format, precision in VARIANTS
]


def within(spec: EncoderSpec, found: FloatArray, expected: FloatArray) -> bool:
    """Whether embeddings `[N, D]` are as near as its certificate has to be; nearer with half weights."""
    difference = float(np.abs(found - expected).max())
    if has_half_weights(spec.format, spec.device, spec.precision):
        return difference <= 1e-6
    bound = parity_bound(spec.format, spec.device, spec.precision)
    cosines = (found * expected).sum(1)
    return bound.holds(difference, float(cosines.min()), float(cosines.mean()))


def inputs_of(path: Path, spec: EncoderSpec) -> list[tuple[Tensor, ...]]:
    """Inputs of one row each, none like another; texts of different lengths."""
    rng = np.random.default_rng(11)
    if spec.image is not None:
        size = (3, spec.image.crop_height, spec.image.crop_width)
        return [(torch.from_numpy(rng.integers(0, 256, (1, *size), dtype=np.uint8)),) for _ in range(4)]
    assert spec.text is not None
    definition = format_of(path).extra_file(path, TOKENIZER_FILE).decode()
    tokenizer = Tokenizer(definition, spec.text)
    *first, last = tokenizer.tokenize("").ids
    rows = [[*first, *rng.integers(10, 500, n).tolist(), last] for n in (3, 1, 9, 25)]
    return [tuple(torch.from_numpy(array) for array in tokenizer.pad([row])) for row in rows]


def padded(rows: list[tuple[Tensor, ...]], spec: EncoderSpec, more: int) -> tuple[Tensor, ...]:
    """One batch of all rows; texts padded to the longest, and by `more` tokens."""
    if spec.text is None:
        return (torch.cat([row[0] for row in rows]),)
    length = spec.text.padded(max(row[0].shape[1] for row in rows) + more)
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
            assert within(spec, found, alone[:count]), (count, more)
        # The same row among others, at another place.
        found = module(*padded(rows[::-1], spec, 7)).numpy()[::-1]
        assert within(spec, found, alone)


def test_every_kind_of_encoder_is_among_them(pairs: Pairs) -> None:
    """A family with a graph of its own fails until it has its name above."""

    def kind(layout: str, modality: Modality) -> str:
        pair = pairs[layout]
        module = pair.image.build(True) if modality == "image" else pair.text.build(True)
        return type(module).__name__

    both: tuple[Modality, Modality] = ("image", "text")
    kinds = {kind(layout, modality) for layout in tiny.PAIRS for modality in both}
    kinds |= {kind(layout, "text") for layout in tiny.TEXTS}
    tried = {
        kind(name.removesuffix("image").rstrip("-") or "clip", "image" if name.endswith("image") else "text")
        for name in ENCODERS
    }
    assert tried == kinds


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


@pytest.mark.parametrize("format", ["torchscript", pytest.param("onnx", marks=pytest.mark.full)])
def test_an_encoder_that_averages_over_padding_is_found(
    format: Format, pair: CheckpointPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the export's own proof, and, where that is blind, by the invariance."""
    # It has an operator that no encoder has, and would be refused for that alone.
    monkeypatch.setattr(loading, "check_operators", lambda path, module: None)
    with pytest.raises(ParityError, match="nothing was published"):
        export_encoder(without_mask(pair), "text", "cpu", "fp32", tmp_path, file_format=format)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as blind:
        blind.setitem(PARITY_BOUNDS, "fp32", replace(PARITY_BOUNDS["fp32"], max_abs_diff=10.0))
        spec = export_encoder(without_mask(pair), "text", "cpu", "fp32", tmp_path, file_format=format)
    with pytest.raises(AssertionError, match=r"\(2, 0\)"):
        assert_batch_invariant(tmp_path / spec.file_name)


WANTED_PIXELS = r"pixel_values must be uint8 \[N, 3, 48, 48\], RGB, 0 to 255"


@pytest.mark.parametrize("pixels", OTHER_PIXELS.values(), ids=OTHER_PIXELS)
@pytest.mark.parametrize(
    ("format", "precision"),
    [("torchscript", "fp32"), ("torchscript", "bf16"), ("torchscript", "fp16"), ("onnx", "fp32")],
)
def test_other_pixels_are_refused(
    format: Format, precision: Precision, pixels: Tensor, exported_as: ExportedAs
) -> None:
    """CASES 16: never another vector. An ONNX input has a type and sizes, which ONNX Runtime checks."""
    path = exported_as("image", format, precision)
    with pytest.raises(Exception, match=WANTED_PIXELS if format == "torchscript" else "INVALID_ARGUMENT"):
        format_of(path).load(path, CPU)(pixels)


@pytest.mark.parametrize("pixels", OTHER_PIXELS.values(), ids=OTHER_PIXELS)
@pytest.mark.parametrize("format", ["torchscript", pytest.param("aoti", marks=when("image", "aoti"))])
def test_a_worker_embeds_no_other_pixels(format: Format, pixels: Tensor, exported_as: ExportedAs) -> None:
    """CASES 16, for files that do not refuse them: compiled packages, and those from before."""
    encoder = ExportedImageEncoder(exported_as("image", format, "fp32"), CPU)
    with pytest.raises(ValueError, match=WANTED_PIXELS):
        encoder.embed(list(pixels.numpy()))


class FromBefore(nn.Module):
    """An image encoder as it was when it took any pixels."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, pixel_values: Tensor) -> Tensor:
        with Spelled({check_pixels: lambda pixels, *_: pixels}):
            return self.inner(pixel_values)  # type: ignore[no-any-return]


def test_a_worker_runs_a_file_from_before(pair: CheckpointPair, tmp_path: Path) -> None:
    """CASES 16: it gave float pixels a vector; the worker does not."""
    spec = export_encoder(rebuilt(pair, "image", FromBefore), "image", "cpu", "fp32", tmp_path)
    path = tmp_path / spec.file_name
    floats = OTHER_PIXELS["normalised"]
    assert FORMATS["torchscript"].load(path, CPU)(floats).shape == (2, 32)
    encoder = ExportedImageEncoder(path, CPU)
    with pytest.raises(ValueError, match=WANTED_PIXELS):
        encoder.embed(list(floats.numpy()))


@pytest.mark.parametrize(
    ("name", "format"),
    [
        pytest.param(name, format, marks=when(name, format))
        for name in ("image", "multilingual")
        for format in OTHER_FORMATS
    ],
)
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
    again = recheck(SUBJECTS[spec.modality](pair), FORMATS[format], path, spec)
    assert [case.name for case in again.cases] == [case.name for case in certificate.cases]
    assert (again.bound, again.golden.input) == (certificate.bound, certificate.golden.input)
    # Another process may have made it: where memory lies decides in which order some numbers are added.
    assert again.max_abs_diff == pytest.approx(certificate.max_abs_diff, abs=1e-6)
    assert again.min_cosine == pytest.approx(certificate.min_cosine, abs=1e-6)
    if name == "multilingual":
        assert format_of(path).extra_file(path, TOKENIZER_FILE).decode() == pair.text.tokenizer


@pytest.mark.full
def test_formats_lie_beside_each_other(exported_as: ExportedAs) -> None:
    paths = [exported_as("image", format, "fp32") for format in FORMATS]
    folder = paths[0].parent
    assert {path.parent for path in paths} == {folder}
    assert {path.stem for path in paths} == {"clip-image-cpu-fp32"}
    assert set(paths) <= {file.path for file in Store.read(folder, FORMATS).encoders}
    assert len({description_path(path).read_text() for path in paths}) == len(FORMATS)
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


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


@pytest.mark.parametrize("format", ["torchscript", "onnx"])
def test_machine_code_and_capability_belong_together(format: Format, text_path: Path, tmp_path: Path) -> None:
    data = json.loads(read_spec(text_path).to_json())
    for fields in ({"format": "aoti"}, {"format": format, "cpu_capability": "x86_64"}):
        with pytest.raises(SpecError, match="cpu_capability has a value that no encoder has"):
            EncoderSpec.from_json(json.dumps({**data, **fields}), "x")
