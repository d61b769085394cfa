"""An encoder's golden input as the tensors that its graph takes, for readers that are not clipserve."""

from __future__ import annotations

import base64
import json
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from clipserve.encoder_spec import (
    SPEC_FILE,
    TOKENIZER_FILE,
    decode_vector,
    encode_vector,
    read_extra_file,
    read_spec,
)
from clipserve.images import ImageLimits, decode_image, preprocess
from clipserve.tokens import Tokenizer

# What a caller with preprocessing of its own may hand to an image encoder of 48 x 48 pixels.
OTHER_PIXELS = {
    "float in [0, 1]": torch.rand(2, 3, 48, 48),
    "normalised": torch.randn(2, 3, 48, 48),
    "int64": torch.zeros(2, 3, 48, 48, dtype=torch.int64),
    "uint8 NHWC": torch.zeros(2, 48, 48, 3, dtype=torch.uint8),
    # One patch would be added to the positions of all.
    "uint8, one patch": torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
    "one picture, no batch": torch.zeros(3, 48, 48, dtype=torch.uint8),
}


def golden_inputs(encoder: Path) -> list[Tensor]:
    """`pixel_values` uint8 `[1, 3, H, W]`, or `input_ids` and `attention_mask` int64 `[1, L]`."""
    spec = read_spec(encoder)
    golden = spec.certificate.golden.input
    if spec.image is not None:
        picture = decode_image(base64.b64decode(golden), ImageLimits())
        return [torch.from_numpy(preprocess(picture, spec.image, ImageLimits()))[None]]
    assert spec.text is not None
    tokenizer = Tokenizer(read_extra_file(encoder, TOKENIZER_FILE).decode("utf-8"), spec.text)
    return [torch.from_numpy(array) for array in tokenizer.pad([tokenizer.tokenize(golden).ids])]


def save_golden_inputs(encoder: Path, folder: Path) -> Path:
    """Writes them into `folder` as a list, with `torch.save`."""
    path = folder / f"{encoder.stem}-inputs.pt"
    torch.save(golden_inputs(encoder), path)
    return path


def flip_golden(encoder: Path, target: Path) -> Path:
    """Writes `encoder` to `target` with a golden embedding of the opposite direction."""
    with zipfile.ZipFile(encoder) as source, zipfile.ZipFile(target, "w") as changed:
        for record in source.infolist():
            data = source.read(record)
            if record.filename.endswith(f"/extra/{SPEC_FILE}"):
                spec = json.loads(data)
                golden = spec["certificate"]["golden"]
                golden["embedding"] = encode_vector(-decode_vector(golden["embedding"]))
                data = json.dumps(spec).encode()
            changed.writestr(record, data)
    return target
