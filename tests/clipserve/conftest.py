from __future__ import annotations

import numpy as np
import pytest

from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import FloatArray
from clipserve.endpoints import ENDPOINTS
from clipserve.pipeline import Pipeline
from clipserve.settings import Settings
from clipserve.wire.rows import Row
from tests.clipserve.answers import (
    PICTURES,
    TEXTS,
    json_row,
    vectors,
)


@pytest.fixture(scope="module")
def images(image_encoder: ExportedImageEncoder) -> Pipeline:
    return Pipeline(ENDPOINTS["clip_image"], [image_encoder], Settings())


@pytest.fixture(scope="module")
def texts(text_encoder: ExportedTextEncoder) -> Pipeline:
    return Pipeline(ENDPOINTS["clip_text"], [text_encoder], Settings())


@pytest.fixture
def similarity(image_encoder: ExportedImageEncoder, text_encoder: ExportedTextEncoder) -> Pipeline:
    return Pipeline(ENDPOINTS["clip_similarity"], [image_encoder, text_encoder], Settings())


@pytest.fixture(scope="module")
def text_vectors(texts: Pipeline) -> FloatArray:
    """Each text embedded alone."""
    return np.concatenate([vectors(texts.handle([json_row({"input": t})])[0]) for t in TEXTS])


@pytest.fixture(scope="module")
def picture_vectors(images: Pipeline) -> FloatArray:
    """Each picture embedded alone."""
    return np.concatenate([vectors(images.handle([Row(p, "image/jpeg")])[0]) for p in PICTURES])
