"""What the tests of exports share: pairs of every layout, and how to run and compare their encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import SUFFIXES, EncoderSpec, FloatArray, Modality, Precision
from clipserve.images import ImageLimits, preprocess
from clipserve.store import EncoderFile
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.formats import FORMATS
from export_scripts.formats.base import EncoderFormat
from export_scripts.parity.inputs import photograph_like
from standins.layouts import LAYOUTS

CPU = torch.device("cpu")

# Those that bring an image encoder of their own.
IMAGE_LAYOUTS = pytest.mark.parametrize("layout", [name for name, layout in LAYOUTS.items() if layout.image])

# Other texts and pictures than those of the export's own parity check.
TEXTS = ["", "a", "Három madár a tengerparton", "三只猫在桌子上", "قطة على الطاولة", "one two three " * 90]

PICTURES = [photograph_like(np.random.default_rng(5), *size) for size in ((71, 133), (200, 90), (48, 48))]

Pairs = dict[str, CheckpointPair]

Exported = Callable[[str, Modality, Precision], Path]

# Where MKL's products have their borders (docs/parity.md, Neighbours); by other kernels they lie elsewhere.
AS_MEASURED = torch.backends.mkl.is_available() and "AVX" in torch.backends.cpu.get_cpu_capability()

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
    cosine = (unit(found) * unit(original)).sum(1).min()
    if precision == "bf16":
        assert cosine >= 0.999
    else:
        assert np.abs(found - original).max() <= {"fp32": 1e-5, "fp16": 5e-4}[precision]
        assert cosine >= 0.99999


def empty(folder: Path) -> bool:
    """Nothing published, and nothing half made left behind."""
    return list(folder.iterdir()) == []


def rebuilt(
    pair: CheckpointPair, modality: Modality, change: Callable[[nn.Module], nn.Module]
) -> CheckpointPair:
    """The pair with one encoder built in another way, its original as it was."""
    if modality == "image":
        build = pair.image.build
        return replace(pair, image=replace(pair.image, build=lambda normalized: change(build(normalized))))
    build = pair.text.build
    return replace(pair, text=replace(pair.text, build=lambda normalized: change(build(normalized))))


def format_of(path: Path) -> EncoderFormat:
    return next(FORMATS[name] for name, suffix in SUFFIXES.items() if path.suffix == suffix)


def read_any_spec(path: Path) -> EncoderSpec:
    return EncoderFile.read(path, format_of(path)).spec
