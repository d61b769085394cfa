"""MetaCLIP 2 and Chinese-CLIP as transformers saves them, against transformers alone."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    ChineseCLIPImageProcessorPil,
    ChineseCLIPModel,
    CLIPImageProcessorPil,
    MetaClip2Model,
    XLMRobertaTokenizer,
)

from clipserve.cost import Budget
from clipserve.embedders import TextEmbedder
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import FloatArray, Precision, parity_bound
from clipserve.images import ImageLimits, decode_image, preprocess
from clipserve.settings import Settings
from clipserve.similarity import cosine_similarity, probabilities
from clipserve.tokens import Tokenizer
from clipserve.wire.messages import Embedded
from demo.captions import load_vocabularies
from export_scripts.checkpoints.loading import load_pair
from export_scripts.encoders.supported import FAMILIES, REFUSED
from export_scripts.parity.inputs import picture_files
from export_scripts.publish import export_encoder
from standins import checkpoints
from standins.families import metaclip_2
from tests.conftest import FolderOf
from tests.export_scripts.checkpoints.edits import (
    Change,
    Vary,
    agrees,
    edit_json,
    image_refusal,
    pair_refusal,
    remove,
    text_refusal,
)
from tests.export_scripts.exports import CPU, LAYOUTS, Exported, Pairs, embed_texts

TEXTS = [
    "",
    "   ",
    "Two Dogs in the SNOW!",
    "a cat, on a table (not under it)…",
    "snow_man's  hat\t\n- #3",
    # What ends a text, in the middle of one.
    "two </s> dogs [SEP] in <pad> the [CLS] snow",
    "e\u0301te\u0301 ﬁ １２３ ™",
    "🐶🐶❄️",
    "雪地里的两只狗，一只猫。",
    "one two three " * 90,
    "雪" * 80,
    *(next(iter(vocabulary.phrases())).capitalize() for vocabulary in load_vocabularies().values()),
]


@dataclass(frozen=True)
class Original:
    """Of transformers: by name, so that none of our code chooses."""

    model: Any
    processor: Any
    tokenizer: Any
    length: int


ORIGINALS = {
    "metaclip-2": Original(MetaClip2Model, CLIPImageProcessorPil, XLMRobertaTokenizer, 77),
    "chinese-clip": Original(ChineseCLIPModel, ChineseCLIPImageProcessorPil, BertTokenizer, 52),
}
BOTH = pytest.mark.parametrize("kind", list(ORIGINALS))


def original_tokens(kind: str, folder: Path, texts: list[str]) -> Any:
    of = ORIGINALS[kind]
    tokenizer = of.tokenizer.from_pretrained(folder)
    options = {"padding": True, "truncation": True, "max_length": of.length}
    tokens = tokenizer(texts, **options, return_tensors="pt")
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@BOTH
def test_from_raw_inputs_to_probabilities(
    kind: str, precision: Precision, folder_of: FolderOf, exported: Exported
) -> None:
    image = ExportedImageEncoder(exported(kind, "image", precision), CPU)
    text = ExportedTextEncoder(exported(kind, "text", precision), CPU)
    folder, of = folder_of(kind), ORIGINALS[kind]
    # Without what an original leaves to its caller: transparency, and turning by EXIF.
    data = [file.data for file in picture_files(5, 48, 0) if file.name.endswith("JPEG")]
    assert len(data) == 2
    originals = [Image.open(io.BytesIO(one)) for one in data]
    pixels = of.processor.from_pretrained(folder)(originals, return_tensors="pt")
    model = of.model.from_pretrained(folder).eval()
    with torch.inference_mode():
        original = model(**original_tokens(kind, folder, TEXTS), **pixels)
    decoded = [decode_image(one, ImageLimits()) for one in data]
    pictures = image.embed([preprocess(one, image.preprocessing, ImageLimits()) for one in decoded])
    texts = embed_texts(text, TEXTS)
    bound = parity_bound("torchscript", "cpu", precision)
    for found, expected in ((pictures, original.image_embeds.numpy()), (texts, original.text_embeds.numpy())):
        cosines = (found * expected).sum(1)
        assert bound.holds(float(np.abs(found - expected).max()), float(cosines.min()), float(cosines.mean()))
    assert image.spec.score == text.spec.score
    assert image.spec.score.kind == "softmax"
    found = probabilities(cosine_similarity(pictures, texts), image.spec.score)
    expected = original.logits_per_image.softmax(-1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3 if precision == "fp32" else 0.2)


@BOTH
def test_tokens_are_the_originals(kind: str, folder_of: FolderOf, pairs: Pairs) -> None:
    """Of every phrase of the vocabulary in 40 languages, as it is and in capitals."""
    checkpoint = pairs[kind].text
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.preprocessing)
    phrases = [phrase for v in load_vocabularies().values() for phrase in v.phrases()]
    texts = [*TEXTS, *phrases, *(phrase.upper() for phrase in phrases)]
    found = tokenizer.pad([tokenizer.tokenize(text).ids for text in texts])
    for ours, expected in zip(found, original_tokens(kind, folder_of(kind), texts).values(), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert found[0].shape[1] == ORIGINALS[kind].length


@BOTH
def test_pictures_are_squashed(kind: str, pairs: Pairs) -> None:
    """As the published processors say, that name a height and a width: the ends of a wide one are seen."""
    preprocessing = pairs[kind].image.preprocessing
    assert preprocessing.resize == "squash"
    picture = Image.new("RGB", (400, 40), "red")
    picture.paste("blue", (360, 0, 400, 40))
    pixels = preprocess(picture, preprocessing, ImageLimits())
    assert pixels[:, 24, 2].tolist() == [255, 0, 0]
    assert pixels[:, 24, 46].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("metaclip-2", {"size": {"shortest_edge": 48}}),
        ("chinese-clip", {"size": {"shortest_edge": 48}, "do_center_crop": True, "crop_size": 48}),
    ],
)
def test_pictures_of_another_processor(kind: str, fields: Any, folder_of: FolderOf, vary: Vary) -> None:
    """Cropped where it says so."""
    pair = load_pair(str(vary(folder_of(kind), edit_json("preprocessor_config.json", **fields))))
    assert pair.image.preprocessing.resize == "shortest_edge"
    wide = [Image.effect_noise((90, 60), 80).convert("RGB")]
    pixels = torch.from_numpy(
        np.stack([preprocess(p, pair.image.preprocessing, ImageLimits()) for p in wide])
    )
    with torch.inference_mode():
        found = pair.image.build(False).eval()(pixels).numpy()
    np.testing.assert_allclose(found, pair.image.reference(wide), atol=1e-5)


def eos(token: int) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["text_config"]["eos_token_id"] = token
        path.write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("metaclip-2", eos(49407), ["pools at token 49407", "ends a text with token 2"]),
        ("metaclip-2", remove("tokenizer.json"), ["no tokenizer"]),
        ("chinese-clip", remove("vocab.txt"), ["no tokenizer"]),
        ("chinese-clip", remove("pytorch_model.bin"), ["cannot load it"]),
    ],
)
def test_text_refusals(kind: str, change: Change, words: list[str], folder_of: FolderOf, vary: Vary) -> None:
    message = text_refusal(vary(folder_of(kind), change))
    for word in words:
        assert word in message


def test_a_crop_of_another_size_is_refused(folder_of: FolderOf, vary: Vary) -> None:
    change = edit_json("preprocessor_config.json", crop_size={"height": 40, "width": 40})
    assert "do_center_crop: True" in image_refusal(vary(folder_of("metaclip-2"), change))


@pytest.mark.parametrize("modules", [False, True])
@pytest.mark.parametrize("model_type", list(REFUSED))
def test_refused_by_name(model_type: str, modules: bool, tmp_path: Path) -> None:
    """In one sentence, around which modules of sentence-transformers change nothing."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if modules:
        (tmp_path / "modules.json").write_text("[]")
    assert pair_refusal(str(tmp_path)) == f"{tmp_path}: {REFUSED[model_type]}"
    assert "\n" not in REFUSED[model_type]
    assert model_type not in FAMILIES


# A product of one row adds in another order than one of many where the row is long, as in published sizes.
WIDE: dict[str, Callable[[Path], Path]] = {
    "siglip": partial(
        checkpoints.write_siglip, shape=replace(checkpoints.TINY_SIGLIP, text_width=320, text_layers=1)
    ),
    "metaclip-2": partial(
        metaclip_2.write_metaclip_2, shape=replace(metaclip_2.TINY, text_width=320, text_layers=1)
    ),
}


@pytest.mark.parametrize("kind", list(WIDE))
def test_a_lone_text_has_the_vector_that_it_has_among_others(kind: str, tmp_path: Path) -> None:
    pair = load_pair(str(WIDE[kind](tmp_path / kind)))
    spec = export_encoder(pair, "text", "cpu", "fp32", tmp_path)
    assert_independent(ExportedTextEncoder(tmp_path / spec.file_name, CPU))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_text_does_not_depend_on_its_neighbours(
    layout: str, precision: Precision, exported: Exported
) -> None:
    assert_independent(ExportedTextEncoder(exported(layout, "text", precision), CPU))


def assert_independent(encoder: ExportedTextEncoder) -> None:
    """As a worker embeds texts, not a bit differs: alone, beside a longer one, in any batch, at any place."""
    embedder = TextEmbedder(encoder, Settings())
    alone = {text: vectors_of(embedder, [text]) for text in NEIGHBOURS}
    for texts in (NEIGHBOURS[:2], NEIGHBOURS[:3], NEIGHBOURS, NEIGHBOURS[::-1], NEIGHBOURS * 3):
        expected = np.concatenate([alone[text] for text in texts])
        np.testing.assert_array_equal(vectors_of(embedder, texts), expected)


NEIGHBOURS = [
    "two dogs", "a cat on a table in the snow, beside three birds " * 3, "a cat", "x", "", "y",
    "a cat on a table", "két kutya a hóban", "雪地里的两只狗",
]  # fmt: skip


def vectors_of(embedder: TextEmbedder, texts: Sequence[str]) -> FloatArray:
    results = embedder(texts, Budget.of(600))
    assert all(isinstance(result, Embedded) for result in results)
    return np.stack([result.embedding for result in results if isinstance(result, Embedded)])


def test_no_position_is_asked_for_that_there_is_none_for(tmp_path: Path) -> None:
    shape = replace(metaclip_2.TINY, context_length=20)
    assert agrees(metaclip_2.write_metaclip_2(tmp_path / "short", shape)).preprocessing.context_length == 20
