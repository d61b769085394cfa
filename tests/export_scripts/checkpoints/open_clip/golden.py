"""What open_clip itself gave for the stand-ins; `recipe.py` made golden.json."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipserve.encoder_spec import FloatArray
from export_scripts.checkpoints.reading import read_state_dict

FILE = Path(__file__).with_name("golden.json")


@cache
def content() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


SENTENCES: list[str] = content()["sentences"]
# Those that are prepared otherwise here; see docs/parity.md.
NOT_MENDED: list[str] = content()["not_mended"]
PICTURES = {name: base64.b64decode(data) for name, data in content()["pictures"].items()}


@dataclass(frozen=True)
class Golden:
    """Of one kind of folder.

    Attributes:
        fingerprint: of the folder, see `fingerprint`.
        pictures, texts: un-normalised embeddings of `PICTURES`, and of `SENTENCES` and `NOT_MENDED`.
        tokens: of those texts, padded.
        logits: of pictures and `SENTENCES`.
    """

    fingerprint: str
    pictures: FloatArray
    texts: FloatArray
    tokens: npt.NDArray[np.int32]
    logits: FloatArray


def golden(kind: str) -> Golden:
    found = content()["kinds"][kind]

    def vectors(name: str, width: int) -> FloatArray:
        return np.frombuffer(base64.b64decode(found[name]), dtype="<f4").astype(np.float32).reshape(-1, width)

    tokens = np.frombuffer(zlib.decompress(base64.b64decode(found["tokens"])), dtype="<i4")
    return Golden(
        found["fingerprint"],
        vectors("pictures", found["dimension"]),
        vectors("texts", found["dimension"]),
        tokens.reshape(-1, found["length"]),
        vectors("logits", len(SENTENCES)),
    )


def fingerprint(folder: Path) -> str:
    """Of what a stand-in's vectors depend on, as `recipe.py` took it."""
    digest = hashlib.sha256()
    vocabulary = ["vocab.json", "merges.txt"] if (folder / "merges.txt").is_file() else ["tokenizer.json"]
    for name in ["open_clip_config.json", *vocabulary]:
        digest.update((folder / name).read_bytes())
    state = read_state_dict(folder, "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()
