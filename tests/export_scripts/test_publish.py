from __future__ import annotations

import copy
import io
import json
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageFilter
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil
from transformers.activations import ACT2FN
from transformers.image_utils import PILImageResampling
from transformers.models.auto import image_processing_auto

from clipserve import encoder as encoder_module
from clipserve import hardware
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder, load_torchscript
from clipserve.encoder_spec import (
    PARITY_BOUNDS,
    FloatArray,
    Modality,
    ParityBound,
    Precision,
    artifact_sha256,
    decode_vector,
    read_spec,
)
from clipserve.errors import ExportError, ParityError
from clipserve.images import ImageLimits, decode_image, preprocess
from export_scripts import publish
from export_scripts.checkpoints.sentence_transformers import CheckpointPair, load_pair
from export_scripts.encoders.clip import ACTIVATIONS, Mlp
from export_scripts.formats.torchscript import device_constants
from export_scripts.parity import subjects
from export_scripts.parity.inputs import photograph_like
from export_scripts.parity.proof import recheck
from export_scripts.publish import Made, check_device, export_encoder
from standins import checkpoints

CPU = torch.device("cpu")
LAYOUTS = ["clip", "multilingual", "m-clip-bert", "m-clip-xlm-r"]

# Other texts and pictures than those of the export's own parity check.
TEXTS = ["", "a", "Három madár a tengerparton", "三只猫在桌子上", "قطة على الطاولة", "one two three " * 90]
PICTURES = [photograph_like(np.random.default_rng(5), *size) for size in ((71, 133), (200, 90), (48, 48))]

Pairs = dict[str, CheckpointPair]

# torch's own filter for warnings about its own code, which pytest's filters replace. (Tracing an embedding
# that knows its padding gives one.) Warnings about ours stay errors.
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn.functional")


@pytest.fixture(scope="module")
def pairs(
    clip_folder: Path, multilingual_folder: Path, m_clip_bert_folder: Path, m_clip_xlm_roberta_folder: Path
) -> Pairs:
    texts = {
        "clip": clip_folder,
        "multilingual": multilingual_folder,
        "m-clip-bert": m_clip_bert_folder,
        "m-clip-xlm-r": m_clip_xlm_roberta_folder,
    }
    return {name: load_pair(str(clip_folder), str(folder)) for name, folder in texts.items()}


Exported = Callable[[str, Modality, Precision], Path]


@pytest.fixture(scope="module")
def exported(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exports an encoder, each one once; to be read, never written."""
    folder = tmp_path_factory.mktemp("exported")

    def export(layout: str, modality: Modality, precision: Precision) -> Path:
        path = folder / layout / f"clip-{modality}-cpu-{precision}.pt"
        if not path.is_file():
            spec = export_encoder(pairs[layout], modality, "cpu", precision, folder / layout)
            assert f"{spec.stem}.pt" == path.name
        return path

    return export


TEXT_LAYOUTS = pytest.mark.parametrize("layout", LAYOUTS)


def unit(embeddings: FloatArray) -> FloatArray:
    normalized: FloatArray = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return normalized


def embed_texts(encoder: ExportedTextEncoder, texts: list[str]) -> FloatArray:
    return encoder.embed(*encoder.tokenizer.pad([encoder.tokenizer.tokenize(text).ids for text in texts]))


def embed_pictures(encoder: ExportedImageEncoder) -> FloatArray:
    return encoder.embed([preprocess(p, encoder.preprocessing, ImageLimits()) for p in PICTURES])


def assert_parity(found: FloatArray, original: FloatArray, precision: Precision) -> None:
    assert found.dtype == np.float32
    assert found.shape == original.shape
    # Inputs that the encoder does not tell apart would prove nothing.
    cosines = unit(original) @ unit(original).T
    assert cosines.min() < 0.99
    if precision == "fp32":
        assert np.abs(found - original).max() <= 1e-5
    else:
        assert (unit(found) * unit(original)).sum(1).min() >= 0.999


def empty(folder: Path) -> bool:
    """Nothing published, and nothing half made left behind."""
    return list(folder.iterdir()) == []


# ---- parity of every layout


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@TEXT_LAYOUTS
def test_text_parity(layout: str, precision: Precision, pairs: Pairs, exported: Exported) -> None:
    encoder = ExportedTextEncoder(exported(layout, "text", precision), CPU)
    spec = encoder.spec
    assert (spec.precision, spec.device, spec.normalized, spec.embedding_dim) == (precision, "cpu", True, 32)
    original = pairs[layout].text.reference_encode(TEXTS)
    assert_parity(embed_texts(encoder, TEXTS), unit(original), precision)
    np.testing.assert_allclose(np.linalg.norm(embed_texts(encoder, TEXTS), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_image_parity(precision: Precision, pair: CheckpointPair, exported: Exported) -> None:
    found = embed_pictures(ExportedImageEncoder(exported("clip", "image", precision), CPU))
    assert found.dtype == np.float32
    expected = unit(pair.image.reference(PICTURES))
    if precision == "fp32":
        assert np.abs(found - expected).max() <= 1e-5
    else:
        assert (unit(found) * expected).sum(1).min() >= 0.999
    assert np.abs(expected[0] - expected[1]).max() > 0.01


class OtherResizing(CLIPImageProcessorPil):
    """Stands in for torchvision's processor, which cannot be installed beside this torch: other pixels."""

    resample = PILImageResampling.BOX

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs | {"resample": PILImageResampling.BOX})


@pytest.mark.parametrize("torchvision", [False, True])
def test_original_resizes_with_pillow_whatever_is_installed(
    torchvision: bool, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES 7: asked for by name, through sentence-transformers' own loading, too."""
    by_name = image_processing_auto.get_image_processor_class_from_name
    asked = []

    def chosen(name: str) -> Any:
        asked.append(name)
        return OtherResizing if name == "CLIPImageProcessor" else by_name(name)

    monkeypatch.setattr(image_processing_auto, "is_torchvision_available", lambda: torchvision)
    monkeypatch.setattr(image_processing_auto, "get_image_processor_class_from_name", chosen)
    pair = load_pair(str(clip_folder))
    assert ("CLIPImageProcessor" in asked) == torchvision
    assert "CLIPImageProcessorPil" in asked
    export_encoder(pair, "image", "cpu", "fp32", tmp_path)
    # Were it the other, it would be seen.
    other = OtherResizing(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    ours = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    difference = np.abs(other(PICTURES[0])["pixel_values"][0] - ours(PICTURES[0])["pixel_values"][0])
    assert difference.max() > 0.05


@pytest.mark.parametrize(
    "shape",
    [
        checkpoints.ClipShape(40, 8, 32, 1, 4, 24, 1, 3, 20, 700, 24),
        checkpoints.ClipShape(56, 14, 48, 1, 3, 32, 2, 2, 48, 600, 77),
    ],
    ids=["patches of 8, 20-d", "patches of 14, 48-d"],
)
def test_no_size_is_assumed(shape: checkpoints.ClipShape, tmp_path: Path) -> None:
    pair = load_pair(str(checkpoints.write_clip(tmp_path / "clip", shape)))
    image = export_encoder(pair, "image", "cpu", "fp32", tmp_path / "store")
    text = export_encoder(pair, "text", "cpu", "fp32", tmp_path / "store")
    assert image.embedding_dim == text.embedding_dim == shape.projection_dim
    assert image.image is not None
    assert image.image.crop_height == shape.image_size
    assert text.text is not None
    assert text.text.context_length == shape.context_length
    pictures = embed_pictures(ExportedImageEncoder(tmp_path / "store" / f"{image.stem}.pt", CPU))
    np.testing.assert_allclose(pictures, unit(pair.image.reference(PICTURES)), atol=1e-5)
    texts = embed_texts(ExportedTextEncoder(tmp_path / "store" / f"{text.stem}.pt", CPU), TEXTS)
    np.testing.assert_allclose(texts, unit(pair.text.reference_encode(TEXTS)), atol=1e-5)


@pytest.mark.parametrize("eos", [2, 599])
def test_clip_text_is_pooled_at_the_end_token(eos: int, clip_folder: Path, tmp_path: Path) -> None:
    """Published configurations name 2, newer ones the end token itself; both must pool there."""
    folder = tmp_path / "clip"
    (folder / "0_CLIPModel").mkdir(parents=True)
    for path in clip_folder.rglob("*.*"):
        if path.is_file():
            (folder / path.relative_to(clip_folder)).write_bytes(path.read_bytes())
    config = json.loads((folder / "0_CLIPModel" / "config.json").read_text())
    config["text_config"]["eos_token_id"] = eos
    (folder / "0_CLIPModel" / "config.json").write_text(json.dumps(config))
    pair = load_pair(str(folder))
    spec = export_encoder(pair, "text", "cpu", "fp32", tmp_path / "store")
    found = embed_texts(ExportedTextEncoder(tmp_path / "store" / f"{spec.stem}.pt", CPU), TEXTS)
    np.testing.assert_allclose(found, unit(pair.text.reference_encode(TEXTS)), atol=1e-5)
    expected = unit(load_pair(str(clip_folder)).text.reference_encode(TEXTS))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@TEXT_LAYOUTS
def test_dynamic_batch_and_length(layout: str, pairs: Pairs, exported: Exported) -> None:
    """Shapes that neither the trace nor its parity check saw."""
    pair = pairs[layout]
    path = exported(layout, "text", "fp32")
    module = load_torchscript(path, CPU)
    longest = pair.text.preprocessing.context_length
    pad = pair.text.preprocessing.pad_token_id
    rng = np.random.default_rng(0)
    encoder = ExportedTextEncoder(path, CPU)
    first, last = encoder.tokenizer.tokenize("").ids
    for count, length in ((1, 2), (1, 3), (1, longest), (5, 31), (33, 6), (2, longest - 1)):
        ids = torch.full((count, length), pad)
        mask = torch.zeros(count, length, dtype=torch.int64)
        for row in range(count):
            n = int(rng.integers(2, length + 1))
            ids[row, :n] = torch.tensor([first, *rng.integers(10, 500, n - 2), last])
            mask[row, :n] = 1
        with torch.inference_mode():
            found = module(ids, mask).numpy()
        np.testing.assert_allclose(found, unit(pair.text.reference(ids, mask)), atol=1e-5)


def test_dynamic_picture_batch(image_encoder: ExportedImageEncoder, pair: CheckpointPair) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (17, 3, 48, 48), dtype=np.uint8)
    whole = image_encoder.embed(list(noise))
    assert whole.shape == (17, 32)
    alone = np.concatenate([image_encoder.embed([picture]) for picture in noise])
    np.testing.assert_allclose(whole, alone, atol=1e-5)


def test_extreme_pixels(image_encoder: ExportedImageEncoder, pair: CheckpointPair) -> None:
    """Rescaling and mean/std are inside the graph: black and white are their ends."""
    flat = [np.full((3, 48, 48), value, dtype=np.uint8) for value in (0, 128, 255)]
    expected = pair.image.reference([Image.fromarray(p.transpose(1, 2, 0)) for p in flat])
    np.testing.assert_allclose(image_encoder.embed(flat), unit(expected), atol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_the_originals(name: str) -> None:
    """Apart from encoders: random weights are so small that all activations are nearly linear."""
    up, down = nn.Linear(4, 8), nn.Linear(8, 3)
    x = torch.linspace(-9, 9, 4004).view(1, -1, 4)
    expected = down(ACT2FN[name](up(x)))
    torch.testing.assert_close(Mlp(up, down, name)(x), expected, rtol=1e-6, atol=2e-6)
    # The original's layers, which are the reference, stay as they were.
    torch.testing.assert_close(down(ACT2FN[name](up(x))), expected, rtol=0, atol=0)


# ---- the graph


def assert_portable(path: Path) -> None:
    module = load_torchscript(path, CPU)
    assert device_constants(module) == []
    graph = str(torch.jit.freeze(module.eval()).inlined_graph)
    assert "aten::scaled_dot_product_attention" in graph
    assert "Device = prim::Constant" not in graph


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@TEXT_LAYOUTS
def test_frozen_text_graph_has_no_device_constant(
    layout: str, precision: Precision, exported: Exported
) -> None:
    assert_portable(exported(layout, "text", precision))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_image_graph_has_no_device_constant(precision: Precision, exported: Exported) -> None:
    assert_portable(exported("clip", "image", precision))


class WithArange(nn.Module):
    """Adds nothing, with a tensor made on a named device."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 0.0 * torch.arange(x.shape[0], device="cpu")[:, None]  # type: ignore[no-any-return]


def test_device_constants_are_found() -> None:
    x = torch.ones(2, 3)
    plain = nn.Linear(3, 3)
    assert device_constants(torch.jit.trace(plain, x)) == []
    bound = torch.jit.trace(WithArange(plain), x)
    assert "Device = prim::Constant" in str(torch.jit.freeze(bound.eval()).inlined_graph)
    assert [str(constant) for constant in device_constants(bound)] == ["cpu"]


def rebuilt(
    pair: CheckpointPair, modality: Modality, change: Callable[[nn.Module], nn.Module]
) -> CheckpointPair:
    """The pair with one encoder built in another way, its original as it was."""
    if modality == "image":
        build = pair.image.build
        return replace(pair, image=replace(pair.image, build=lambda normalized: change(build(normalized))))
    build = pair.text.build
    return replace(pair, text=replace(pair.text, build=lambda normalized: change(build(normalized))))


def test_encoder_bound_to_its_device_is_not_published(pair: CheckpointPair, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"image encoder: the graph holds device constants \(cpu\)"):
        export_encoder(rebuilt(pair, "image", WithArange), "image", "cpu", "fp32", tmp_path)
    assert empty(tmp_path)


def test_file_runs_with_nothing_but_torch(store: Path, tmp_path: Path) -> None:
    code = f"""
import sys, torch
text = torch.jit.load({str(store / "clip-text-cpu-fp32.pt")!r})
image = torch.jit.load({str(store / "clip-image-cpu-fp32.pt")!r})
print(text(torch.ones(3, 5, dtype=torch.int64), torch.ones(3, 5, dtype=torch.int64)).shape)
print(image(torch.zeros(4, 3, 48, 48, dtype=torch.uint8)).dtype)
print([m for m in ("clipserve", "transformers", "export_scripts") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["torch.Size([3, 32])", "torch.float32", "[]"]


# ---- what is published


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


@pytest.mark.parametrize("modality", ["image", "text"])
def test_certificate(modality: Modality, pair: CheckpointPair, store: Path) -> None:
    certificate = read_spec(store / f"clip-{modality}-cpu-fp32.pt").certificate
    assert certificate.bound == PARITY_BOUNDS["fp32"]
    assert certificate.max_abs_diff == max(case.max_abs_diff for case in certificate.cases)
    assert certificate.min_cosine == min(case.min_cosine for case in certificate.cases)
    assert 0 < certificate.max_abs_diff <= 1e-5
    names = " / ".join(case.name for case in certificate.cases)
    for word in (
        ["golden input", "batch 1", "batch 8"] if modality == "image" else ["2 x 128", "padded", "scripts"]
    ):
        assert word in names
    golden = decode_vector(certificate.golden.embedding)
    assert golden.shape == (32,)
    assert np.linalg.norm(golden) == pytest.approx(1, abs=1e-6)


def without_white(data: bytes, limits: ImageLimits, **options: Any) -> Image.Image:
    """As a decoder gives it: black where nothing is seen."""
    image = Image.open(io.BytesIO(data))
    return image.convert("RGB") if image.mode == "RGBA" else decode_image(data, limits, **options)


def without_turning(data: bytes, limits: ImageLimits, **options: Any) -> Image.Image:
    if Image.open(io.BytesIO(data)).getexif().get(ExifTags.Base.Orientation) is None:
        return decode_image(data, limits, **options)
    return Image.open(io.BytesIO(data)).convert("RGB")


def smaller(data: bytes, limits: ImageLimits, *, draft_factor: int = 0, **options: Any) -> Image.Image:
    """Large JPEGs at a quarter of their size, where half is served."""
    return decode_image(data, limits, draft_factor=min(1, draft_factor), **options)


def blurred(data: bytes, limits: ImageLimits, **options: Any) -> Image.Image:
    image = decode_image(data, limits, **options)
    upright = not Image.open(io.BytesIO(data)).getexif()
    jpeg = data.startswith(b"\xff\xd8") and image.size == (112, 72) and upright
    return image.filter(ImageFilter.BoxBlur(1)) if jpeg else image


@pytest.mark.parametrize(
    ("decode", "worst"),
    [
        (without_white, "file: PNG with transparency"),
        (without_turning, "file: JPEG turned by EXIF"),
        (smaller, "file: large JPEG, decoded at half its size"),
        (blurred, "file: JPEG"),
    ],
)
def test_certificate_begins_with_the_bytes_that_are_sent(
    decode: Callable[..., Image.Image],
    worst: str,
    pair: CheckpointPair,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CASES 10 and 8: what a server does with a file is compared with the original as well."""
    names = [case.name for case in read_spec(store / "clip-image-cpu-fp32.pt").certificate.cases]
    assert worst in names
    monkeypatch.setattr(subjects, "decode_image", decode)
    with pytest.raises(ParityError, match=re.escape(f"(worst: {worst})")):
        export_encoder(pair, "image", "cpu", "fp32", tmp_path)


def test_m_clips_head_through_other_code(m_clip_bert_folder: Path, pairs: Pairs) -> None:
    """Its original is written here, after M-CLIP's; sentence-transformers' own modules say the same."""
    (head,) = m_clip_bert_folder.glob("*.pkl")
    weight, bias = pickle.loads(head.read_bytes())
    dense = Dense(*weight.shape, activation_function=nn.Identity())
    dense.linear.weight = nn.Parameter(torch.from_numpy(weight.T.copy()))
    dense.linear.bias = nn.Parameter(torch.from_numpy(bias))
    transformer = Transformer(str(m_clip_bert_folder))
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean"), dense]
    other = SentenceTransformer(modules=modules, device="cpu")
    expected = other.encode(TEXTS[:5], show_progress_bar=False)
    np.testing.assert_allclose(pairs["m-clip-bert"].text.reference_encode(TEXTS[:5]), expected, atol=1e-6)


def test_golden_embedding_is_the_originals(pair: CheckpointPair, store: Path) -> None:
    golden = read_spec(store / "clip-text-cpu-fp32.pt").certificate.golden
    expected = unit(pair.text.reference_encode([golden.input]))[0]
    np.testing.assert_allclose(decode_vector(golden.embedding), expected, atol=1e-6)


def test_export_again_replaces(pair: CheckpointPair, tmp_path: Path) -> None:
    first = export_encoder(pair, "text", "cpu", "fp32", tmp_path)
    other = rebuilt(pair, "text", lambda encoder: encoder)
    second = export_encoder(replace(other, model_id="clip"), "text", "cpu", "fp32", tmp_path)
    assert first.stem == second.stem
    assert len(list(tmp_path.iterdir())) == 2
    assert read_spec(tmp_path / f"{second.stem}.pt") == second


def test_export_is_repeatable(pair: CheckpointPair, tmp_path: Path) -> None:
    first, second = (export_encoder(pair, "text", "cpu", "fp32", tmp_path / name) for name in "ab")
    # TorchScript numbers its types through the process, so that the code's names differ.
    assert replace(first, artifact_sha256=second.artifact_sha256) == second


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


def test_bf16_is_bf16(exported: Exported) -> None:
    half, full = exported("clip", "image", "bf16"), exported("clip", "image", "fp32")
    assert {p.dtype for p in load_torchscript(half, CPU).parameters()} == {torch.bfloat16}
    assert read_spec(half).certificate.max_abs_diff > 1e-4
    # Another precision, the same space.
    assert read_spec(half).space_id == read_spec(full).space_id


@pytest.mark.parametrize(
    ("layout", "modality"), [("clip", "image"), ("clip", "text"), ("m-clip-xlm-r", "text")]
)
def test_no_warnings(layout: str, modality: Modality, pairs: Pairs, tmp_path: Path) -> None:
    """Above all no TracerWarning, which tells of a number that was baked into the graph."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.jit.TracerWarning.ignore_lib_warnings()  # type: ignore[attr-defined]
        export_encoder(pairs[layout], modality, "cpu", "fp32", tmp_path)
    assert [str(warning.message) for warning in seen] == []


# ---- beyond the bound


def test_beyond_the_bound_nothing_is_published(
    pair: CheckpointPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PARITY_BOUNDS, "fp32", ParityBound(1e-12, 1.1))
    with pytest.raises(ParityError) as caught:
        export_encoder(pair, "text", "cpu", "fp32", tmp_path)
    message = str(caught.value)
    assert message.startswith("text encoder in fp32 on cpu: max-abs ")
    assert "min cosine 1.000000 (worst: " in message
    assert "the bound is max-abs <= 1e-12 and cosine >= 1.1; nothing was published" in message
    assert empty(tmp_path)


class Around(nn.Module):
    """Base of wrong encoders."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner


class FirstTokensOnly(Around):
    """Right for every input up to the length of the trace."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        n = subjects.TRACE_LENGTH
        return self.inner(input_ids[:, :n], attention_mask[:, :n])  # type: ignore[no-any-return]


class WithoutMask(Around):
    """Right for every input without padding."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.inner(input_ids, torch.ones_like(attention_mask))  # type: ignore[no-any-return]


class NanWhereLong(Around):
    """NaN for a few inputs only, so that the least of all cosines may be found beside it."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        long = attention_mask.sum(1, keepdim=True) > 100
        return torch.where(long, float("nan"), self.inner(input_ids, attention_mask))


class Reversed(Around):
    """Right for batches of one."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.inner(*inputs).flip(0)  # type: ignore[no-any-return]


class Half(Around):
    """An embedding of another length."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.inner(*inputs)[:, :16]  # type: ignore[no-any-return]


class Mirrored(Around):
    """Pictures from right to left."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.inner(pixel_values.flip(3))  # type: ignore[no-any-return]


class ChannelsSwapped(Around):
    """BGR for RGB."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.inner(pixel_values.flip(1))  # type: ignore[no-any-return]


def nudged(encoder: nn.Module) -> nn.Module:
    """One weight off by a little."""
    changed = copy.deepcopy(encoder)
    with torch.no_grad():
        changed.projection.weight[3, 5] += 1e-3  # type: ignore[operator, index, union-attr]
    return changed


def not_a_number(encoder: nn.Module) -> nn.Module:
    """NaN compares false with every bound."""
    changed = copy.deepcopy(encoder)
    with torch.no_grad():
        changed.projection.weight[0, 0] = float("nan")  # type: ignore[operator, union-attr]
    return changed


@pytest.mark.parametrize(
    ("modality", "precision", "change"),
    [
        ("text", "fp32", nudged), ("image", "fp32", nudged), ("text", "fp32", not_a_number),
        ("image", "bf16", not_a_number), ("text", "fp32", FirstTokensOnly), ("text", "bf16", FirstTokensOnly),
        ("text", "bf16", WithoutMask), ("text", "bf16", Reversed), ("image", "bf16", Reversed),
        ("text", "bf16", NanWhereLong), ("text", "fp32", Half), ("image", "fp32", Half),
        ("image", "bf16", Mirrored), ("image", "bf16", ChannelsSwapped),
    ],
)  # fmt: skip
def test_wrong_encoders_are_not_published(
    modality: Modality,
    precision: Precision,
    change: Callable[[nn.Module], nn.Module],
    pair: CheckpointPair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Some have operators that no encoder has, and would be refused for those alone.
    monkeypatch.setattr(encoder_module, "check_operators", lambda path, module: None)
    with pytest.raises(ParityError, match=r"(max-abs .*min cosine|the export gives .* the original )"):
        export_encoder(rebuilt(pair, modality, change), modality, "cpu", precision, tmp_path)
    assert empty(tmp_path)


def test_failed_export_leaves_the_published_encoder_alone(pair: CheckpointPair, tmp_path: Path) -> None:
    good = export_encoder(pair, "text", "cpu", "fp32", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ParityError):
        export_encoder(rebuilt(pair, "text", nudged), "text", "cpu", "fp32", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert ExportedTextEncoder(tmp_path / f"{good.stem}.pt", CPU).spec == good


# ---- device and precision


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

    def stopwatch(export: object, made: Made, subject: object) -> float:
        timed.append(read_spec(made.path).precision)
        return seconds[timed[-1]]

    monkeypatch.setattr(hardware, "cpu_has_native_bf16", lambda: native)
    monkeypatch.setattr(publish._Export, "_seconds", stopwatch)
    spec = export_encoder(pair, "text", "cpu", None, tmp_path)
    assert (spec.precision, timed) == (expected, made)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{spec.stem}.json", f"{spec.stem}.pt"]


def test_auto_takes_no_precision_beyond_its_bound(
    pair: CheckpointPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cpu_has_native_bf16", lambda: True)
    monkeypatch.setattr(
        publish._Export, "_seconds", lambda export, made, subject: 0.0 if "bf16" in made.path.name else 9.0
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


# ---- proving a published encoder again


@pytest.mark.parametrize("modality", ["image", "text"])
def test_recheck(modality: Modality, pair: CheckpointPair, store: Path, tmp_path: Path) -> None:
    path = store / f"clip-{modality}-cpu-fp32.pt"
    spec = read_spec(path)
    assert recheck(pair, path, spec) == spec.certificate
    bare = export_encoder(pair, modality, "cpu", "bf16", tmp_path, normalized=False)
    assert recheck(pair, tmp_path / f"{bare.stem}.pt", bare) == bare.certificate


@pytest.mark.parametrize("modality", ["image", "text"])
def test_recheck_against_another_checkpoint(modality: Modality, store: Path, tmp_path: Path) -> None:
    other = load_pair(str(checkpoints.write_clip(tmp_path / "clip", seed=9)))
    path = store / f"clip-{modality}-cpu-fp32.pt"
    with pytest.raises(
        ExportError, match=r"made from a checkpoint with weights and settings \w{12}…, MODEL has \w{12}…"
    ):
        recheck(other, path, read_spec(path))


# ---- on a GPU


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
