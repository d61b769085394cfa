"""open_clip folders, against what open_clip itself gave for them (golden.json, made by recipe.py)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import FloatArray, Precision
from clipserve.images import ImageLimits, decode_image, preprocess
from clipserve.preprocessing import ImagePreprocessing
from clipserve.similarity import cosine, cosine_similarity, probabilities
from clipserve.tokens import Tokenizer
from export_scripts.checkpoints.loading import load_image_checkpoint, load_pair, load_text_checkpoint
from export_scripts.encoders.layers import ACTIVATIONS, Mlp
from export_scripts.parity.inputs import photograph_like
from export_scripts.publish import export_encoder
from standins.open_clip import KINDS, VARIANTS, write_open_clip
from tests.conftest import FolderOf
from tests.export_scripts.checkpoints.edits import (
    Change,
    Vary,
    drop,
    edit_tensors,
    image_refusal,
    pair_refusal,
    remove,
    text_refusal,
    write,
)
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
    lowers = kind not in ("open-clip-xlm-r", "open-clip-clipa")
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


def test_a_linear_projection(tmp_path: Path) -> None:
    """`hf_proj_type: linear`, as the nllb-clips have it, whose transformer is not supported."""
    name = "open-clip-xlm-r-linear"
    folder = write_open_clip(tmp_path / name, VARIANTS[name])
    wanted = golden(name)
    assert fingerprint(folder) == wanted.fingerprint
    spec = export_encoder(load_pair(str(folder)), "text", "cpu", "fp32", tmp_path)
    found = embed_texts(ExportedTextEncoder(tmp_path / spec.file_name, CPU), SENTENCES)
    np.testing.assert_allclose(unit(found), unit(wanted.texts[: len(SENTENCES)]), atol=1e-5, rtol=0)


def palette_as_numbers(picture: Image.Image, edge: int, squash: bool) -> Image.Image:
    """As torchvision has Pillow resize a palette: to the nearest."""
    shorter = min(picture.size)
    size = (edge, edge) if squash else tuple(edge * side // shorter for side in picture.size)
    return picture.resize((size[0], size[1]), Image.Resampling.NEAREST).convert("RGB")


def said(row: str, column: int) -> float:
    """A number of docs/parity.md's part on open_clip."""
    page = (Path(__file__).parents[4] / "docs" / "parity.md").read_text(encoding="utf-8")
    lines = page.partition("## open_clip")[2].splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {row} |")]
    return float(line.split("|")[column].split()[0])


@pytest.mark.parametrize("kind", ["open-clip", "open-clip-siglip"])
def test_what_is_done_otherwise_on_purpose(kind: str, pairs: Pairs) -> None:
    """docs/parity.md's table, whose numbers are of these stand-ins."""
    image, text = pairs[kind].image, pairs[kind].text
    column = 4 if kind == "open-clip" else 5

    def assert_said(row: str, ours: FloatArray, theirs: FloatArray) -> None:
        assert cosine(ours[0], theirs[0]) == pytest.approx(said(row, column), abs=0.02), row

    rng = np.random.default_rng(4)
    drawing = photograph_like(rng, 100, 90).convert("RGBA")
    drawing.putalpha(photograph_like(rng, 100, 90).convert("L"))
    assert_said("transparency", image.reference([drawing]), image.reference([drawing.convert("RGB")]))
    palette = photograph_like(rng, 104, 98).quantize(64)
    squash = image.preprocessing.resize == "squash"
    theirs = palette_as_numbers(palette, image.preprocessing.shortest_edge, squash)
    assert_said("a palette", image.reference([palette]), image.reference([theirs]))
    for index, sentence in enumerate(NOT_MENDED):
        ours = text.reference_encode([sentence])
        assert_said(f"`{sentence}`", ours, golden(kind).texts[len(SENTENCES) + index][None])


# ---- the same weights as transformers has them: docs/parity.md's last table on open_clip


def embedded(encoder: nn.Module, picture: Image.Image, preprocessing: ImagePreprocessing) -> FloatArray:
    pixels = preprocess(picture, preprocessing, ImageLimits())
    with torch.inference_mode():
        found: FloatArray = encoder.eval()(torch.from_numpy(pixels)[None])[0].numpy()
    return found


def test_transformers_crops_elsewhere(pairs: Pairs) -> None:
    checkpoint = pairs["open-clip"].image
    encoder, edge = checkpoint.build(True), checkpoint.preprocessing.shortest_edge
    picture = photograph_like(np.random.default_rng(4), edge + 3, edge)
    ours, theirs = (
        embedded(encoder, picture, replace(checkpoint.preprocessing, crop_offset=offset))
        for offset in (checkpoint.preprocessing.crop_offset, "floor")
    )
    row = "the centre crop, where an odd number of pixels is cut off (`crop_offset`)"
    assert cosine(ours, theirs) == pytest.approx(said(row, 4), abs=2e-3)


def test_transformers_has_another_gelu(pairs: Pairs) -> None:
    checkpoint = pairs["open-clip-siglip"].image
    exact, tanh = checkpoint.build(True), checkpoint.build(True)
    changed = [module for module in tanh.modules() if isinstance(module, Mlp)]
    for module in changed:
        assert module.activation is ACTIVATIONS["gelu"]
        module.activation = ACTIVATIONS["gelu_pytorch_tanh"]
    assert changed
    picture = photograph_like(np.random.default_rng(4), 100, 90)
    ours, theirs = (embedded(encoder, picture, checkpoint.preprocessing) for encoder in (exact, tanh))
    assert np.abs(ours - theirs).max() > 0
    assert cosine(ours, theirs) == pytest.approx(said("a SigLIP's GELU", 4), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "text", "alike", "transformers", "same_there"),
    [
        ("open-clip", "“curly”", '"curly"', "clip", False),
        ("open-clip-siglip", "snow_man", "snow man", "siglip", False),
        ("open-clip-siglip-2", "snow_man", "snow man", "siglip-2", False),
        ("open-clip-siglip-2", "two dogs, a cat.", "two dogs a cat", "siglip-2", False),
        ("open-clip-siglip", "two dogs, a cat.", "two dogs a cat", "siglip", True),
    ],
)
def test_transformers_has_other_tokens(
    kind: str, text: str, alike: str, transformers: str, same_there: bool, pairs: Pairs
) -> None:
    """Of texts that are the same to open_clip."""

    def same(layout: str) -> bool:
        checkpoint = pairs[layout].text
        tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.preprocessing)
        return tokenizer.tokenize(text).ids == tokenizer.tokenize(alike).ids

    assert same(kind)
    assert same(transformers) == same_there


def test_punctuation_that_transformers_keeps(pairs: Pairs) -> None:
    ours, theirs = pairs["siglip-2"].text.reference_encode(["two dogs a cat", "two dogs, a cat."])
    assert cosine(ours, theirs) == pytest.approx(said("a SigLIP 2's punctuation", 4), abs=2e-3)


# ---- the folder


def test_a_pickle_runs_nothing(folder_of: FolderOf, mark: Path, vary: Vary) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (mark,)

    def change(folder: Path) -> None:
        torch.save({"logit_scale": Hostile()}, folder / "open_clip_pytorch_model.bin")

    folder = vary(folder_of("open-clip-quickgelu"), change)
    for message in (image_refusal(folder), text_refusal(folder)):
        assert "not a file of tensors" in message
    assert not mark.exists()


def test_either_side_alone(folder_of: FolderOf) -> None:
    """LAION's text encoder with another's pictures, and its pictures with another's texts."""
    own, clip, student = (str(folder_of(name)) for name in ("open-clip", "clip", "multilingual"))
    assert load_pair(own, student).text.checkpoint_sha256 == load_pair(clip, student).text.checkpoint_sha256
    pair = load_pair(clip, own)
    assert pair.text.checkpoint_sha256 == load_pair(own).text.checkpoint_sha256
    assert pair.doubt is not None
    assert "other weights than clip" in pair.doubt
    assert load_pair(own).doubt is None


def test_it_comes_before_the_files_of_transformers(folder_of: FolderOf, vary: Vary) -> None:
    """LAION's folders have both, and were trained by open_clip."""
    folder = vary(folder_of("open-clip"), write("config.json", json.dumps({"model_type": "clip"})))
    preprocessing = load_image_checkpoint(folder, "x").preprocessing
    assert preprocessing.crop_offset == "round"


@pytest.mark.parametrize("weights", ["safetensors", "pickle"])
def test_names_of_a_training_run(weights: str, folder_of: FolderOf, vary: Vary) -> None:
    """Scales in a vector, names behind `module.`, masks and position ids: the same vectors and identity."""

    def change(folder: Path) -> None:
        path = folder / "open_clip_model.safetensors"
        state = {f"module.{name}": tensor for name, tensor in load_file(path).items()}
        state["module.logit_scale"] = state["module.logit_scale"].reshape(1)
        state["module.attn_mask"] = torch.zeros(77, 77)
        state["module.text.transformer.embeddings.position_ids"] = torch.arange(514)[None]
        path.unlink()
        if weights == "safetensors":
            save_file(state, path)
        else:
            torch.save(state, folder / "open_clip_pytorch_model.bin")

    folder = vary(folder_of("open-clip"), change)
    for load in (load_image_checkpoint, load_text_checkpoint):
        assert load(folder, "x").checkpoint_sha256 == load(folder_of("open-clip"), "x").checkpoint_sha256


def says(section: str, **values: Any) -> Change:
    """Changes one section of a configuration; `model_cfg` is above the others."""

    def change(folder: Path) -> None:
        path = folder / "open_clip_config.json"
        config = json.loads(path.read_text())
        inner = config if section == "" else config.get(section) or config["model_cfg"].get(section)
        inner.update(values)
        path.write_text(json.dumps(config))

    return change


SAFE = "open_clip_model.safetensors"


def case(value: str | Change | list[str]) -> str:
    """A case's name: a function's has its address, which is another in each process."""
    return "" if callable(value) else str(value)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("open-clip", remove(SAFE), ["neither open_clip_model.safetensors nor open_clip_pytorch_model.bin"]),
        ("open-clip", write(SAFE, b"x"), ["cannot load its image encoder"]),
        ("open-clip", edit_tensors(SAFE, drop("visual.proj")), ["weights are missing: proj"]),
        ("open-clip", edit_tensors(SAFE, drop("logit_scale")), ["weights are missing: logit_scale"]),
        (
            "open-clip",
            edit_tensors(SAFE, lambda state: state.update({"visual.extra": torch.ones(1)})),
            ["not expected extra (1 in all)"],
        ),
        ("open-clip", says("vision_cfg", width=32), ["do not fit its open_clip_config.json"]),
        ("open-clip", write("open_clip_config.json", "[]"), ["open_clip_config.json: list"]),
        ("open-clip", says("", model_cfg=[]), ["model_cfg is no object"]),
        ("open-clip", says("model_cfg", multimodal_cfg={}), ["CoCa", "take a CLIP of the same data"]),
        ("open-clip", says("model_cfg", embed_dim="x"), ["embed_dim 'x'"]),
        ("open-clip", says("model_cfg", new=1), ["model_cfg: new 1 is not known here"]),
        ("open-clip", says("vision_cfg", new=1), ["vision_cfg: new 1 is not known here"]),
        ("open-clip", says("preprocess_cfg", new=1), ["preprocess_cfg: new 1 is not known here"]),
        ("open-clip", says("vision_cfg", layers=[3, 4, 6, 3]), ["ResNet", "take a ViT of the same data"]),
        (
            "open-clip",
            says("vision_cfg", pool_type="avg"),
            ["with final_ln_after_pool False"],
        ),
        ("open-clip", says("vision_cfg", pool_type="none"), ["pool_type 'none'", "are 'tok', and 'avg'"]),
        ("open-clip", says("vision_cfg", attentional_pool=True), ["attentional_pool True", "is False"]),
        ("open-clip", says("vision_cfg", no_ln_pre=True), ["not expected ln_pre.bias, ln_pre.weight"]),
        ("open-clip", says("vision_cfg", qk_norm=True), ["qk_norm True"]),
        ("open-clip", says("vision_cfg", norm_kwargs={"bias": False}), ["norm_kwargs {'bias': False}"]),
        ("open-clip", says("vision_cfg", act_kwargs={"x": 1}), ["act_kwargs {'x': 1}"]),
        ("open-clip", says("vision_cfg", image_size=[48, 64]), ["image_size [48, 64]"]),
        ("open-clip", says("preprocess_cfg", resize_mode="longest"), ["resize_mode 'longest'", "'squash'"]),
        ("open-clip", says("preprocess_cfg", interpolation="lanczos"), ["interpolation 'lanczos'"]),
        ("open-clip-siglip", says("vision_cfg", timm_pool="avg"), ["timm_pool 'avg'", "is 'map'"]),
        ("open-clip-pe-core", says("vision_cfg", timm_proj="linear"), ["timm_proj 'linear'", "is None"]),
        ("open-clip-pe-core", says("vision_cfg", image_size=72), ["do not fit its open_clip_config.json"]),
        (
            "open-clip-pe-core",
            says("vision_cfg", timm_model_name="vit_pe_core_gigantic_patch14_448"),
            ["vit_pe_core_gigantic_patch14_448", "no class token", "take PE-Core-L-14-336"],
        ),
        (
            "open-clip-pe-core",
            edit_tensors(SAFE, drop("visual.trunk.attn_pool.latent")),
            ["weights are missing: trunk.attn_pool.latent"],
        ),
        (
            "open-clip-siglip",
            says("vision_cfg", timm_model_name="fastvit_mci0", timm_pool="avg", timm_proj=None),
            ["fastvit_mci0", "FastViT", "take a ViT of DataComp"],
        ),
        (
            "open-clip-siglip",
            says("vision_cfg", timm_model_name="vit_base_mci_224", timm_pool="token", timm_proj=None),
            ["vit_base_mci_224", "a MobileCLIP-B's", "take a ViT of DataComp"],
        ),
        ("open-clip-siglip", says("vision_cfg", timm_proj=None), ["timm_proj None", "is 'none'"]),
        (
            "open-clip-siglip",
            says("vision_cfg", timm_model_name="convnext_base"),
            ["convnext_base", "vit_base_patch16_siglip_224", "vit_pe_core_base_patch16_224"],
        ),
    ],
    ids=case,
)
def test_image_refusals(kind: str, change: Change, words: list[str], folder_of: FolderOf, vary: Vary) -> None:
    message = image_refusal(vary(folder_of(kind), change))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("open-clip", says("text_cfg", new=1), ["text_cfg: new 1 is not known here"]),
        ("open-clip", says("text_cfg", embed_cls=True), ["embed_cls True", "supported is False"]),
        ("open-clip", says("text_cfg", pool_type="eos"), ["pool_type 'eos' with no_causal_mask False"]),
        ("open-clip", says("text_cfg", no_causal_mask=True), ["'argmax' with no_causal_mask True"]),
        ("open-clip", says("text_cfg", proj_type="none"), ["proj_type 'none'"]),
        ("open-clip", says("text_cfg", tokenizer_kwargs={"clean": "x"}), ["tokenizer_kwargs {'clean': 'x'}"]),
        ("open-clip", says("text_cfg", tokenizer_kwargs={"language": "x"}), ["{'language': 'x'}"]),
        ("open-clip", says("text_cfg", tokenizer_mode="clips"), ["tokenizer_mode 'clips'"]),
        ("open-clip", remove("tokenizer.json", "vocab.json", "merges.txt"), ["no tokenizer"]),
        ("open-clip", edit_tensors(SAFE, drop("ln_final")), ["weights are missing: ln_final.weight"]),
        ("open-clip-xlm-r", says("text_cfg", hf_pooler_type="cls_pooler"), ["'cls_pooler'", "'mean_pooler'"]),
        ("open-clip-xlm-r", says("text_cfg", hf_proj_type="x"), ["hf_proj_type 'x'", "'mlp' or 'linear'"]),
        ("open-clip-xlm-r", says("text_cfg", hf_model_name="nowhere/at-all"), ["nowhere/at-all"]),
        ("open-clip-xlm-r", edit_tensors(SAFE, drop("text.proj.2")), ["weights are missing: proj.2.weight"]),
        (
            "open-clip-xlm-r",
            says("text_cfg", hf_tokenizer_name=""),
            ["a XLMRobertaTokenizer, where"],
        ),
    ],
    ids=case,
)
def test_text_refusals(kind: str, change: Change, words: list[str], folder_of: FolderOf, vary: Vary) -> None:
    message = text_refusal(vary(folder_of(kind), change))
    for word in words:
        assert word in message


def test_of_other_sizes_they_are_no_pair(folder_of: FolderOf) -> None:
    message = pair_refusal(str(folder_of("open-clip")), str(folder_of("open-clip-siglip")))
    assert "gives 32-d embeddings" in message
