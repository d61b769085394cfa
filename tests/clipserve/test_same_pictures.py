"""The twenty files: what the core makes of each, against the original by name."""

from __future__ import annotations

import io
import json
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from transformers import CLIPImageProcessorPil

from clipserve.encoder import ExportedImageEncoder
from clipserve.encoder_spec import FloatArray
from clipserve.endpoints import ENDPOINTS
from clipserve.pipeline import Pipeline
from clipserve.settings import Settings
from clipserve.wire.rows import Row
from standins.twenty_files import FILES, assert_same_vectors, file, served_pixels, served_vector

# Files that the original has other pixels of, and by how much at the most (levels of 255, on average): here
# alone a JPEG is decoded at a reduced size.
REDUCED = {"large.jpg": 0.3}


def as_viewers_show(name: str) -> Image.Image:
    """A file's picture by Pillow's own means: upright, its profile brought to sRGB."""
    data = file(name) + (b"\xff\xd9" if name == "no-end.jpg" else b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        image.load()
        if "garbage" not in name:
            image = ImageOps.exif_transpose(image)
    if "icc_profile" not in image.info:
        return image
    managed = ImageCms.profileToProfile(
        image,
        io.BytesIO(image.info["icc_profile"]),
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert managed is not None
    return managed


def original_pixels(name: str, encoder: ExportedImageEncoder) -> np.ndarray:
    """What transformers' own processor makes of that."""
    preprocessing = encoder.preprocessing
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": preprocessing.shortest_edge},
        crop_size={"height": preprocessing.crop_height, "width": preprocessing.crop_width},
        do_rescale=False,
        do_normalize=False,
    )
    return processor(as_viewers_show(name), return_tensors="np")["pixel_values"][0]


@pytest.mark.parametrize("name", FILES)
def test_pixels_as_the_original(name: str, image_encoder: ExportedImageEncoder) -> None:
    """CASES 8, 15, 21, 22, 24."""
    found, expected = served_pixels(name, image_encoder), original_pixels(name, image_encoder)
    if name in REDUCED:
        assert np.abs(found.astype(np.int16) - expected.astype(np.int16)).mean() < REDUCED[name]
    else:
        np.testing.assert_array_equal(found, expected)


def test_vectors_tell_the_files_apart(image_encoder: ExportedImageEncoder) -> None:
    """Else the comparison of doors would compare nothing."""
    assert len(FILES) == 20

    def door(name: str, data: bytes) -> FloatArray:
        return served_vector("photo.jpg", image_encoder)

    with pytest.raises(AssertionError, match=r"plain\.png"):
        assert_same_vectors(door, lambda name: served_vector(name, image_encoder))


def test_every_file_has_the_same_vector_at_the_endpoint(image_encoder: ExportedImageEncoder) -> None:
    """What TorchServe and Ray Serve host, without either."""
    endpoint = Pipeline(ENDPOINTS["clip_image"], [image_encoder], Settings())

    def door(name: str, data: bytes) -> FloatArray:
        body = json.loads(endpoint.handle([Row(data, "")])[0].body)
        return np.array(body["data"][0]["embedding"], np.float32)

    assert_same_vectors(door, lambda name: served_vector(name, image_encoder))
