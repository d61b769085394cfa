"""An exported encoder gives its original's embeddings, whatever its layout, sizes and inputs."""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageFilter
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from torch import nn
from transformers import CLIPImageProcessorPil
from transformers.activations import ACT2FN
from transformers.image_utils import PILImageResampling
from transformers.models.auto import image_processing_auto

from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import PARITY_BOUNDS, Modality, Precision, decode_vector, read_spec
from clipserve.errors import ExportError, ParityError
from clipserve.images import ImageLimits, decode_image
from clipserve.loading import load_torchscript
from export_scripts.checkpoints.loading import load_pair
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.encoders.layers import ACTIVATIONS, Mlp
from export_scripts.formats import FORMATS
from export_scripts.parity import subjects
from export_scripts.parity.proof import recheck
from export_scripts.publish import export_encoder
from standins import checkpoints
from tests.export_scripts.exports import (
    CPU,
    IMAGE_LAYOUTS,
    PICTURES,
    TEXT_LAYOUTS,
    TEXTS,
    Exported,
    Pairs,
    assert_parity,
    embed_pictures,
    embed_texts,
    unit,
)

# torch's own filter for warnings about its own code, which pytest's filters replace. (Tracing an embedding
# that knows its padding gives one.) Warnings about ours stay errors.
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn.functional")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@TEXT_LAYOUTS
def test_text_parity(layout: str, precision: Precision, pairs: Pairs, exported: Exported) -> None:
    encoder = ExportedTextEncoder(exported(layout, "text", precision), CPU)
    spec = encoder.spec
    dim = pairs[layout].text.embedding_dim
    assert (spec.precision, spec.device, spec.normalized, spec.embedding_dim) == (precision, "cpu", True, dim)
    original = pairs[layout].text.reference_encode(TEXTS)
    assert_parity(embed_texts(encoder, TEXTS), unit(original), precision)
    np.testing.assert_allclose(np.linalg.norm(embed_texts(encoder, TEXTS), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@IMAGE_LAYOUTS
def test_image_parity(layout: str, precision: Precision, pairs: Pairs, exported: Exported) -> None:
    found = embed_pictures(ExportedImageEncoder(exported(layout, "image", precision), CPU))
    assert found.dtype == np.float32
    expected = unit(pairs[layout].image.reference(PICTURES))
    assert_parity(found, expected, precision)
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
    rng = np.random.default_rng(0)
    tokenizer = ExportedTextEncoder(path, CPU).tokenizer
    *first, last = tokenizer.tokenize("").ids
    for count, length in ((1, 2), (1, 3), (1, longest), (5, min(31, longest)), (33, 6), (2, longest - 1)):
        lengths = [*rng.integers(2, length + 1, count - 1), length]
        rows = [[*first, *rng.integers(10, 500, n - 1 - len(first)), last] for n in lengths]
        ids, mask = map(torch.from_numpy, tokenizer.pad(rows))
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


@pytest.mark.parametrize("modality", ["image", "text"])
def test_recheck(modality: Modality, pair: CheckpointPair, store: Path, tmp_path: Path) -> None:
    path = store / f"clip-{modality}-cpu-fp32.pt"
    spec = read_spec(path)
    subject, form = subjects.SUBJECTS[modality](pair), FORMATS["torchscript"]
    assert recheck(subject, form, path, spec) == spec.certificate
    bare = export_encoder(pair, modality, "cpu", "bf16", tmp_path, normalized=False)
    assert recheck(subject, form, tmp_path / f"{bare.stem}.pt", bare) == bare.certificate


@pytest.mark.parametrize("modality", ["image", "text"])
def test_recheck_against_another_checkpoint(modality: Modality, store: Path, tmp_path: Path) -> None:
    other = load_pair(str(checkpoints.write_clip(tmp_path / "clip", seed=9)))
    path = store / f"clip-{modality}-cpu-fp32.pt"
    with pytest.raises(
        ExportError, match=r"made from a checkpoint with weights and settings \w{12}…, MODEL has \w{12}…"
    ):
        recheck(subjects.SUBJECTS[modality](other), FORMATS["torchscript"], path, read_spec(path))
