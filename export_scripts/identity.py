"""The identity of an encoder: one hash over everything that its vectors depend on, and over nothing else.

An index is thrown away when the identity changes, and searched wrongly when it does not though vectors did.
So it is taken from what computes: the numbers that the encoders are built from, the weights that they read,
preprocessing and tokenizer. Not part of it is how these are stored (files, shards, a half precision that
float32 holds exactly), what they are called, and what no vector depends on: `UNUSED_WEIGHTS`, the padding
token behind the attention mask, how tokens would be put together to a text again. Nor is the last stage,
normalised or not: who compares embeddings compares their cosine, and `EncoderSpec.normalized` says which.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from clipserve.encoder_spec import sha256
from clipserve.preprocessing import ImagePreprocessing, TextPreprocessing
from export_scripts.encoders.towers import Architecture

# Rises when the code makes other vectors of the same checkpoint.
IDENTITY_VERSION = 1

# BERT's pooler: embeddings are the mean of the last hidden state. transformers makes it up at random where a
# checkpoint lacks it.
UNUSED_WEIGHTS = "pooler."

# Parts of a `tokenizer.json` that no token id depends on: the version of its format, and the way back to a
# text. Lengths are set by the spec.
UNUSED_TOKENIZER_PARTS = ("version", "truncation", "padding", "decoder")


def used_weights(*modules: nn.Module) -> dict[str, Tensor]:
    """The weights that an encoder made of these originals reads, by the module's number and their name."""
    return {
        f"{number}.{name}": tensor
        for number, module in enumerate(modules)
        for name, tensor in module.state_dict().items()
        if not name.startswith(UNUSED_WEIGHTS)
    }


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """Hash of weights: names, shapes, and values as float32."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {tuple(weights[name].shape)}\0".encode())
        digest.update(weights[name].detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def image_sha256(architecture: Architecture, weights: str, preprocessing: ImagePreprocessing) -> str:
    """`EncoderSpec.checkpoint_sha256` of an image encoder; `weights` is their hash.

    A field that has its default is left out: it was added later, and older encoders keep their identity.
    """
    said = {
        field.name: value
        for field in dataclasses.fields(preprocessing)
        if (value := getattr(preprocessing, field.name)) != field.default
    }
    return _sha256(architecture, weights, said)


def text_sha256(
    architecture: Architecture, weights: str, preprocessing: TextPreprocessing, tokenizer: str
) -> str:
    """`EncoderSpec.checkpoint_sha256` of a text encoder.

    Args:
        weights: their hash.
        tokenizer: text of its `tokenizer.json`.
    """
    definition: dict[str, Any] = json.loads(tokenizer)
    tokens = {name: part for name, part in definition.items() if name not in UNUSED_TOKENIZER_PARTS}
    said: dict[str, Any] = {"context_length": preprocessing.context_length, "tokenizer": tokens}
    if preprocessing.padding != "longest":
        # It is seen.
        said |= {"padding": preprocessing.padding, "pad_token_id": preprocessing.pad_token_id}
    return _sha256(architecture, weights, said)


def space_id(image: str, text: str) -> str:
    """`EncoderSpec.space_id` of a pair: 16 hexadecimal digits over both encoders' `checkpoint_sha256`."""
    return sha256(f"{image}\n{text}".encode())[:16]


def _sha256(architecture: Architecture, weights: str, input: Mapping[str, Any]) -> str:
    description = {
        "identity": IDENTITY_VERSION,
        "architecture": {"kind": type(architecture).__name__, **dataclasses.asdict(architecture)},
        "weights": weights,
        "input": input,
    }
    return sha256(json.dumps(description, sort_keys=True).encode())
