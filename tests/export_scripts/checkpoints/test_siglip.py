"""SigLIP and SigLIP 2 as transformers saves them, against transformers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    GemmaTokenizer,
    Siglip2Tokenizer,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTokenizer,
)

from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import Precision
from clipserve.images import ImageLimits, preprocess
from clipserve.loading import load_torchscript
from clipserve.similarity import cosine_similarity, probabilities
from clipserve.tokens import Tokenizer
from demo.captions import load_vocabularies
from export_scripts.checkpoints.loading import load_pair
from export_scripts.packages.djl import write_djl
from export_scripts.packages.triton import write_repository
from standins import checkpoints as writing
from tests.export_scripts.checkpoints.edits import (
    Change,
    Vary,
    agrees,
    drop,
    edit_json,
    edit_tensors,
    image_refusal,
    pair_refusal,
    remove,
    text_refusal,
)
from tests.export_scripts.exports import CPU, PICTURES, Exported, Pairs, embed_pictures, embed_texts, unit

KINDS = ["siglip", "siglip-2"]
BOTH = pytest.mark.parametrize("kind", KINDS)

TEXTS = [
    "",
    "   ",
    "Two Dogs in the SNOW!",
    "a cat, on a table (not under it)…",
    "snow_man's  hat\t\n- #3",
    "ÉTÉ, İstanbul, STRASSE ß",
    "ΔΎΟ ΣΚΎΛΟΣ Σ ΟΔΥΣΣΈΑΣ, Σ'ΑΓΑΠΏ",
    "КОТ НА СТОЛЕ",
    "e\u0301te\u0301 ﬁ １２３ ™",
    "🐶🐶❄️",
    "one two three " * 90,
    *(next(iter(vocabulary.phrases())).capitalize() for vocabulary in load_vocabularies().values()),
]


@pytest.fixture(scope="module")
def folders(siglip_folder: Path, siglip_2_folder: Path) -> dict[str, Path]:
    return {"siglip": siglip_folder, "siglip-2": siglip_2_folder}


def original_tokens(kind: str, folder: Path, texts: list[str]) -> torch.Tensor:
    """As the model's authors prepare texts, by transformers' own tokenizers."""
    if kind == "siglip":
        tokenizer: Any = SiglipTokenizer.from_pretrained(folder)
    else:
        tokenizer, texts = GemmaTokenizer.from_pretrained(folder), [text.lower() for text in texts]
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=64, return_tensors="pt")
    ids: torch.Tensor = tokens["input_ids"]
    return ids


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@BOTH
def test_from_raw_inputs_to_probabilities(
    kind: str, precision: Precision, folders: dict[str, Path], exported: Exported
) -> None:
    image = ExportedImageEncoder(exported(kind, "image", precision), CPU)
    text = ExportedTextEncoder(exported(kind, "text", precision), CPU)
    model = SiglipModel.from_pretrained(folders[kind]).eval()
    pixels = SiglipImageProcessorPil.from_pretrained(folders[kind])(PICTURES, return_tensors="pt")
    with torch.inference_mode():
        original = model(input_ids=original_tokens(kind, folders[kind], TEXTS), **pixels)
    pictures, texts = embed_pictures(image), embed_texts(text, TEXTS)
    if precision == "fp32":
        np.testing.assert_allclose(pictures, original.image_embeds, atol=1e-5)
        np.testing.assert_allclose(texts, original.text_embeds, atol=1e-5)
    else:
        assert (unit(pictures) * original.image_embeds.numpy()).sum(1).min() >= 0.999
        assert (unit(texts) * original.text_embeds.numpy()).sum(1).min() >= 0.999
    assert image.spec.score == text.spec.score
    found = probabilities(cosine_similarity(pictures, texts), image.spec.score)
    expected = original.logits_per_image.sigmoid().numpy()
    # A logit is 117 cosines.
    np.testing.assert_allclose(found, expected, atol=1e-3 if precision == "fp32" else 0.2)
    assert np.abs(found.sum(1) - 1).max() > 0.1


@BOTH
def test_tokens_are_the_originals(kind: str, folders: dict[str, Path], pairs: Pairs) -> None:
    """Of every phrase of the vocabulary in 40 languages, as it is and in capitals."""
    checkpoint = pairs[kind].text
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.preprocessing)
    phrases = [phrase for v in load_vocabularies().values() for phrase in v.phrases()]
    texts = [*TEXTS, *phrases, *(phrase.upper() for phrase in phrases)]
    ids, _ = tokenizer.pad([tokenizer.tokenize(text).ids for text in texts])
    np.testing.assert_array_equal(ids, original_tokens(kind, folders[kind], texts))


def test_transformers_own_siglip_2_tokenizer_differs_by_a_final_sigma_only(
    siglip_2_folder: Path, pairs: Pairs
) -> None:
    """It lowers each letter by itself, and nobody's configuration names it."""
    tokenizer = Tokenizer(pairs["siglip-2"].text.tokenizer, pairs["siglip-2"].text.preprocessing)
    original = Siglip2Tokenizer.from_pretrained(siglip_2_folder)
    differing = [
        text
        for text in TEXTS
        if list(tokenizer.tokenize(text).ids) != original(text, truncation=True, max_length=64)["input_ids"]
    ]
    assert differing == [text for text in TEXTS if "ΣΚΎΛΟΣ" in text]


@BOTH
def test_pixels_are_the_processors(kind: str, folders: dict[str, Path], pairs: Pairs) -> None:
    original = SiglipImageProcessorPil.from_pretrained(folders[kind])
    for picture in PICTURES:
        ours = preprocess(picture, pairs[kind].image.preprocessing, ImageLimits())
        wanted = original(picture, do_rescale=False, do_normalize=False)["pixel_values"][0]
        np.testing.assert_array_equal(ours, wanted)


@BOTH
def test_a_text_does_not_depend_on_its_neighbours(kind: str, exported: Exported) -> None:
    """Exactly: of a batch as large, whatever stands beside it; and its tokens in any batch."""
    encoder = ExportedTextEncoder(exported(kind, "text", "fp32"), CPU)
    text, longer = "two dogs", "a cat on a table by the sea " * 3
    alone = encoder.tokenizer.pad([encoder.tokenizer.tokenize(text).ids])
    for others in ([longer], ["", "a", longer, longer, "x", text, "cat"]):
        for other in (others, [""] * len(others)):
            ids = [encoder.tokenizer.tokenize(one).ids for one in (text, *other)]
            for found, wanted in zip(encoder.tokenizer.pad(ids), alone, strict=True):
                np.testing.assert_array_equal(found[0], wanted[0])
        beside = embed_texts(encoder, [text, *others])[0]
        np.testing.assert_array_equal(beside, embed_texts(encoder, [text, *[""] * len(others)])[0])
        np.testing.assert_allclose(beside, embed_texts(encoder, [text])[0], atol=1e-6)


@BOTH
def test_padded_to_the_longest_it_is_another_vector(
    kind: str, folders: dict[str, Path], pairs: Pairs
) -> None:
    """docs/parity.md: what sentence-transformers and others do, whose vector depends on the neighbours."""
    model = SiglipModel.from_pretrained(folders[kind]).eval()
    ids = original_tokens(kind, folders[kind], ["two dogs"])
    with torch.inference_mode():
        own, short = (
            unit(model.get_text_features(input_ids=ids[:, :length]).pooler_output.numpy())
            for length in (64, 8)
        )
    np.testing.assert_allclose(own, unit(pairs[kind].text.reference_encode(["two dogs"])), atol=1e-6)
    assert float((own * short).sum()) < 0.9


@pytest.mark.parametrize("length", [1, 2, 63, 65])
def test_other_lengths_are_refused(length: int, exported: Exported) -> None:
    """A single token would be taken for 64 equal ones; by the file itself, and by a worker."""
    path = exported("siglip", "text", "fp32")
    ids = torch.ones(3, length, dtype=torch.int64)
    with pytest.raises(torch.jit.Error, match=r"input_ids must be int64 \[N, 64\], each text padded to 64"):
        load_torchscript(path, CPU)(ids, ids)
    with pytest.raises(ValueError, match=rf"input_ids must be int64 \[N, 64\]; found \[3, {length}\]"):
        ExportedTextEncoder(path, CPU).embed(ids.numpy(), ids.numpy())


@pytest.mark.parametrize(("size", "patch"), [(48, 16), (56, 14), (50, 12)])
def test_sizes(size: int, patch: int, tmp_path: Path) -> None:
    """Also such that are no multiple of a patch: the published 384 pixels have patches of 14."""
    shape = writing.ClipShape(size, patch, 48, 1, 3, 40, 1, 2, 48, 1900, 64)
    folder = writing.write_siglip(tmp_path / "siglip", shape=shape)
    image = load_pair(str(folder)).image
    pixels = torch.from_numpy(np.stack([preprocess(p, image.preprocessing, ImageLimits()) for p in PICTURES]))
    with torch.inference_mode():
        found = image.build(False).eval()(pixels).numpy()
    np.testing.assert_allclose(found, image.reference(PICTURES), atol=1e-5)
    agrees(folder)


def test_squashed_without_a_crop(pairs: Pairs) -> None:
    """The right half of a wide picture counts as much as its left."""
    picture = Image.new("RGB", (400, 40), "red")
    picture.paste("blue", (360, 0, 400, 40))
    pixels = preprocess(picture, pairs["siglip"].image.preprocessing, ImageLimits())
    assert pixels[:, 28, 2].tolist() == [255, 0, 0]
    assert pixels[:, 28, 54].tolist() == [0, 0, 255]


def no_head(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"]["vision_use_head"] = False
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit_json("preprocessor_config.json", do_normalize=False), ["do_normalize"]),
        (edit_json("preprocessor_config.json", do_center_crop=True), ["do_center_crop: True"]),
        (edit_json("preprocessor_config.json", size={"shortest_edge": 56}), ["shortest_edge"]),
        (edit_json("preprocessor_config.json", size={"height": 32, "width": 32}), ["wants 56 x 56"]),
        (edit_json("preprocessor_config.json", size={"height": 56, "width": 32}), ["wants 56 x 56"]),
        (edit_tensors("model.safetensors", drop("vision_model.head.probe")), ["vision_model.head.probe"]),
        (no_head, ["vision_use_head false"]),
    ],
    ids=["normalize", "crop", "edge", "size", "oblong", "weights", "no head"],
)
def test_image_refusals(change: Change, words: list[str], siglip_folder: Path, vary: Vary) -> None:
    message = image_refusal(vary(siglip_folder, change))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("siglip", edit_json("tokenizer_config.json", do_lower_case=False), ["do_lower_case false"]),
        ("siglip", remove("spiece.model"), ["spiece.model"]),
        ("siglip", lambda folder: (folder / "spiece.model").write_bytes(b"x"), ["not a SentencePiece model"]),
        ("siglip-2", edit_json("tokenizer_config.json", padding_side="left"), ["padding_side 'left'"]),
        ("siglip-2", edit_json("tokenizer_config.json", tokenizer_class="BertTokenizer"), ["BertTokenizer"]),
    ],
    ids=["case", "none", "damaged", "left", "other"],
)
def test_text_refusals(
    kind: str, change: Change, words: list[str], folders: dict[str, Path], vary: Vary
) -> None:
    message = text_refusal(vary(folders[kind], change))
    for word in words:
        assert word in message


def test_naflex_is_refused_with_the_reason(siglip_folder: Path, vary: Vary) -> None:
    folder = vary(siglip_folder, edit_json("config.json", model_type="siglip2"))
    for message in (image_refusal(folder), text_refusal(folder)):
        assert "NaFlex" in message
        assert "take one of a fixed resolution, such as google/siglip2-base-patch16-224" in message


def test_around_modules_of_sentence_transformers_it_is_refused(siglip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(siglip_folder, tmp_path / "siglip"))
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    (folder / "modules.json").write_text(json.dumps([module]))
    message = pair_refusal(str(folder))
    assert "prepares the inputs of a SigLIP otherwise than it was trained with" in message
    assert "without modules.json" in message


def test_texts_of_another_model_are_no_pair(siglip_folder: Path, clip_folder: Path) -> None:
    assert "64-d embeddings" in pair_refusal(str(siglip_folder), str(clip_folder))


def test_other_programs_folders(exported: Exported, tmp_path: Path) -> None:
    """What a Java or Triton client has to know is in the spec, and in the shapes."""
    store = exported("siglip", "image", "fp32").parent
    exported("siglip", "text", "fp32")
    folder = write_djl(store / "siglip-text-cpu-fp32.pt", tmp_path)
    assert json.loads((folder / "spec.json").read_text())["text"]["padding"] == "context_length"
    write_repository(store, tmp_path / "triton", None, "cpu", "fp32")
    config = (tmp_path / "triton" / "clip_text" / "config.pbtxt").read_text()
    assert 'name: "input_ids" data_type: TYPE_INT64 dims: [ 64 ]' in config
