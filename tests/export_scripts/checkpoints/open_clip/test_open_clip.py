"""open_clip folders, against what open_clip itself gave for them (golden.json, made by recipe.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import Precision
from clipserve.images import ImageLimits, decode_image, preprocess
from clipserve.similarity import cosine_similarity, probabilities
from clipserve.tokens import Tokenizer
from standins.open_clip import KINDS
from tests.conftest import FolderOf
from tests.export_scripts.checkpoints.open_clip.golden import (
    NOT_MENDED,
    PICTURES,
    SENTENCES,
    fingerprint,
    golden,
)
from tests.export_scripts.exports import CPU, Exported, Pairs, embed_texts, unit

KIND = pytest.mark.parametrize("kind", sorted(KINDS))


@KIND
def test_the_stand_in_is_the_one_of_the_numbers(kind: str, folder_of: FolderOf) -> None:
    """Else the numbers are of something else: make them again, by recipe.py."""
    assert fingerprint(folder_of(kind)) == golden(kind).fingerprint


@KIND
def test_tokens_are_open_clips(kind: str, pairs: Pairs) -> None:
    checkpoint = pairs[kind].text
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.preprocessing)
    for text, wanted in zip(SENTENCES, golden(kind).tokens.tolist(), strict=False):
        ids = list(tokenizer.tokenize(text).ids)
        assert ids == wanted[: len(ids)], text
        # What comes behind is padding, of one kind.
        assert len(set(wanted[len(ids) :])) <= 1, text
    assert checkpoint.preprocessing.context_length == golden(kind).tokens.shape[1]


@KIND
def test_what_is_not_mended_are_the_only_other_tokens(kind: str, pairs: Pairs) -> None:
    """docs/parity.md names them."""
    checkpoint = pairs[kind].text
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.preprocessing)
    lowers = kind not in ("open-clip-xlm-r",)
    for text, wanted in zip(NOT_MENDED, golden(kind).tokens[len(SENTENCES) :].tolist(), strict=True):
        ids = list(tokenizer.tokenize(text).ids)
        same = ids == wanted[: len(ids)]
        # Without a point between them, or in capitals, there is nothing to be told apart.
        assert same == (text == "Κ.Σ" and (not lowers or "siglip" in kind)), text


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@KIND
def test_from_raw_inputs_to_probabilities(kind: str, precision: Precision, exported: Exported) -> None:
    image = ExportedImageEncoder(exported(kind, "image", precision), CPU)
    text = ExportedTextEncoder(exported(kind, "text", precision), CPU)
    wanted = golden(kind)
    limits = ImageLimits()
    files = [
        preprocess(decode_image(data, limits), image.preprocessing, limits) for data in PICTURES.values()
    ]
    pictures, texts = image.embed(files), embed_texts(text, SENTENCES)
    for found, original in ((pictures, wanted.pictures), (texts, wanted.texts[: len(SENTENCES)])):
        assert (unit(found) * unit(original)).sum(1).min() >= 0.999
        # Inputs that the encoder does not tell apart would prove nothing.
        assert (unit(original) @ unit(original).T).min() < 0.9
        if precision == "fp32":
            np.testing.assert_allclose(unit(found), unit(original), atol=1e-5, rtol=0)
    for index, data in enumerate(files):
        np.testing.assert_allclose(unit(image.embed([data])), unit(pictures[index : index + 1]), atol=1e-3)
    logits = torch.from_numpy(wanted.logits)
    sigmoid = "siglip" in kind
    assert image.spec.score == text.spec.score
    assert image.spec.score.kind == ("sigmoid" if sigmoid else "softmax")
    found = probabilities(cosine_similarity(pictures, texts), image.spec.score)
    expected = logits.sigmoid() if sigmoid else logits.softmax(1)
    # A logit is a hundred cosines.
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-3 if precision == "fp32" else 0.3)
