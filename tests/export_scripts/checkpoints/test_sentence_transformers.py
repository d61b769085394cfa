"""sentence-transformers' layouts: a CLIP, and Transformer, Pooling, Dense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModel, ElectraConfig, ElectraModel

from clipserve.encoder_spec import Score
from clipserve.errors import ExportError
from clipserve.images import ImageLimits, preprocess
from export_scripts.checkpoints.loading import load_image_checkpoint, load_pair, load_text_checkpoint
from export_scripts.encoders.bert import BERT_LIKES, BertLike, bert_tower
from standins import checkpoints as writing
from tests.export_scripts.checkpoints.edits import (
    Change,
    Vary,
    agrees,
    clip_tokenizer,
    dense_of,
    drop,
    edit_json,
    edit_tensors,
    image_refusal,
    remove,
    text_refusal,
    write,
)


def test_clip_layout(clip_folder: Path) -> None:
    pair = load_pair(str(clip_folder))
    assert (pair.model_id, pair.image.name, pair.text.name) == ("clip", "clip", "clip")
    assert pair.image.embedding_dim == pair.text.embedding_dim == 32
    assert pair.image.score == Score("softmax", pytest.approx(np.exp(4.6052), rel=1e-6))
    image = pair.image.preprocessing
    assert (image.shortest_edge, image.crop_height, image.crop_width, image.resample) == (
        48,
        48,
        48,
        "bicubic",
    )
    assert list(image.mean) == writing.CLIP_MEAN
    assert list(image.std) == writing.CLIP_STD
    assert pair.text.preprocessing.context_length == 77
    assert pair.text.preprocessing.pad_token_id == 599


def test_plain_transformers_clip_layout(clip_folder: Path) -> None:
    """As openai/clip-vit-base-patch32 is published: no sentence-transformers files around it."""
    plain, wrapped = load_pair(str(clip_folder / "0_CLIPModel")), load_pair(str(clip_folder))
    assert plain.model_id == "0_CLIPModel"
    assert plain.space_id == wrapped.space_id


def test_reference_embeds_pictures(clip_folder: Path) -> None:
    image = load_image_checkpoint(clip_folder, "clip")
    pictures = [Image.new("RGB", (60, 50), "red"), Image.new("RGB", (50, 70), "blue")]
    embeddings = image.reference(pictures)
    assert embeddings.shape == (2, 32)
    assert np.abs(embeddings[0] - embeddings[1]).max() > 0.01


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            edit_json("1_Pooling/config.json", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False),
            ["pooling", "cls", "'mean'"],
        ),
        (edit_json("1_Pooling/config.json", pooling_mode_max_tokens=True), ["pooling", "max", "'mean'"]),
        (
            edit_json("2_Dense/config.json", activation_function="torch.nn.modules.activation.Tanh"),
            ["activation Tanh", "Identity"],
        ),
        (write("modules.json", "{"), ["cannot load"]),
        (write("modules.json", "{}"), ["cannot load"]),
        (
            write(
                "modules.json",
                '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]',
            ),
            ["Transformer", "supported are Transformer, Pooling, Dense"],
        ),
        (remove("model.safetensors"), ["cannot load", "model.safetensors"]),
        (remove("config.json"), []),
        pytest.param(
            edit_json("config.json", model_type="gpt2", n_layer=1, n_embd=48, n_head=2),
            ["GPT2Model", "supported"],
        ),
        (edit_json("config.json", activation="relu"), ["relu", "gelu"]),
        (edit_json("tokenizer_config.json", padding_side="left"), ["left", "supported is right"]),
        (dense_of(torch.zeros(3, 4)), ["size mismatch"]),
    ],
    ids=["cls", "max", "tanh", "no json", "no list", "no dense", "no weights", "no config", "gpt2", "relu",
         "left", "shape"],
)  # fmt: skip
def test_wrong_sentence_transformers_text_layouts(
    change: Change, words: list[str], multilingual_folder: Path, vary: Vary
) -> None:
    folder = vary(multilingual_folder, change)
    with pytest.raises(ExportError) as caught:
        load_text_checkpoint(folder, "x").build(True)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit_json("preprocessor_config.json", crop_size=32, size=32), ["crops to 32 x 32", "wants 48 x 48"]),
        (edit_json("preprocessor_config.json", do_normalize=False), ["not supported", "do_normalize"]),
        (edit_json("preprocessor_config.json", do_center_crop=False), ["not supported", "do_center_crop"]),
        (
            edit_json("preprocessor_config.json", size={"height": 60, "width": 60}),
            ["not supported", "do_center_crop: True"],
        ),
        (edit_json("preprocessor_config.json", rescale_factor=0.5), ["not supported", "0.5"]),
        (remove("preprocessor_config.json"), ["cannot load"]),
        (remove("model.safetensors"), ["cannot load"]),
    ],
    ids=["crop", "normalize", "no crop", "square", "rescale", "no preprocessor", "no weights"],
)
def test_wrong_image_layouts(change: Change, words: list[str], clip_folder: Path, vary: Vary) -> None:
    message = image_refusal(vary(clip_folder, lambda folder: change(folder / "0_CLIPModel")))
    for word in words:
        assert word in message


def test_unknown_resampling_is_refused_in_our_words(clip_folder: Path, vary: Vary) -> None:
    assert "99" in image_refusal(
        vary(clip_folder, edit_json("0_CLIPModel/preprocessor_config.json", resample=99))
    )


@pytest.mark.parametrize("prefix", ["visual_projection", "vision_model.encoder.layers.1.mlp.fc1"])
def test_missing_image_weights_are_refused(prefix: str, clip_folder: Path, vary: Vary) -> None:
    """transformers fills them with random numbers, which every parity check would find faithfully traced."""
    folder = vary(clip_folder, edit_tensors("0_CLIPModel/model.safetensors", drop(prefix)))
    assert prefix in image_refusal(folder)


def test_context_length_never_exceeds_the_positions(multilingual_folder: Path, vary: Vary) -> None:
    folder = vary(multilingual_folder, edit_json("sentence_bert_config.json", max_seq_length=512))
    try:
        context_length = load_text_checkpoint(folder, "x").preprocessing.context_length
    except ExportError:
        return
    assert context_length <= 140


@pytest.mark.parametrize(
    "configuration",
    [
        ("2_Dense/config.json", {"activation_function": "os.system"}),
        ("modules.json", [{"idx": 0, "name": "0", "path": "", "type": "os.system"}]),
        ("modules.json", [{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]),
    ],
    ids=str,
)  # fmt: skip
def test_configurations_import_nothing(
    configuration: tuple[str, Any], multilingual_folder: Path, vary: Vary, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content = configuration

    def change(folder: Path) -> None:
        if isinstance(content, dict):
            edit_json(name, **content)(folder)
        else:
            (folder / name).write_text(json.dumps(content))
        (folder / "evil.py").write_text("raise AssertionError('imported')")

    folder = vary(multilingual_folder, change)
    monkeypatch.syspath_prepend(folder)
    assert text_refusal(folder)


def without_model_max_length(folder: Path) -> None:
    path = folder / "0_CLIPModel" / "tokenizer_config.json"
    content = json.loads(path.read_text())
    del content["model_max_length"]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "context_length"),
    [
        (clip_tokenizer(model_max_length=64), 64),
        (write("0_CLIPModel/sentence_bert_config.json", '{"max_seq_length": 32}'), 32),
        (clip_tokenizer(model_max_length=200), 77),
        (without_model_max_length, 77),
    ],
    ids=["model_max_length 64", "max_seq_length 32", "beyond the positions", "no model_max_length"],
)
def test_clip_with_another_length(change: Change, context_length: int, clip_folder: Path, vary: Vary) -> None:
    """CASES 26 and 30: the shorter length is the context length, for the original as well."""
    assert agrees(vary(clip_folder, change)).preprocessing.context_length == context_length


@pytest.mark.parametrize(("length", "context_length"), [(140, 138), (138, 138), (512, 138), (20, 20)])
def test_xlm_roberta_student(length: int, context_length: int, tmp_path: Path) -> None:
    """CASES 31: of 140 positions RoBERTa uses 138, as of 514 it uses 512."""
    folder = writing.write_student(tmp_path / "student", "xlm-roberta", length=length)
    assert agrees(folder).preprocessing.context_length == context_length


@pytest.mark.parametrize(("length", "context_length"), [(512, 140), (60, 60)])
def test_bert_student(length: int, context_length: int, tmp_path: Path) -> None:
    folder = writing.write_student(tmp_path / "student", "bert", length=length)
    assert agrees(folder).preprocessing.context_length == context_length


@pytest.mark.parametrize("kind", writing.STUDENTS)
def test_every_student(kind: str, tmp_path: Path) -> None:
    agrees(writing.write_student(tmp_path / "student", kind))


def test_every_bert_like_has_a_stand_in() -> None:
    models = {AutoModel._model_mapping[type(s.config(writing.TINY_TEXT))] for s in writing.STUDENTS.values()}
    assert models == {names.model for names in BERT_LIKES.values() if names.alone}


def test_a_part_that_no_encoder_reads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as ELECTRA's projection of embeddings that are narrower than its layers: not a RuntimeError."""
    monkeypatch.setitem(BERT_LIKES, ElectraModel, BertLike(ElectraModel))
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}
    wide, narrow = (ElectraModel(ElectraConfig(embedding_size=size, **sizes)) for size in (48, 24))
    assert bert_tower(wide, nn.Linear(48, 8)).embedding_dim == 8
    with pytest.raises(ExportError, match="ElectraModel with embeddings_project is not supported; supported"):
        bert_tower(narrow, nn.Linear(48, 8))


def test_truncated_pictures_are_refused(clip_folder: Path, vary: Vary) -> None:
    """As texts are: vectors of another length."""
    message = image_refusal(
        vary(clip_folder, write("config_sentence_transformers.json", '{"truncate_dim": 16}'))
    )
    assert "truncate_dim 16 is not supported" in message


def with_normalize(folder: Path) -> None:
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    last = {"idx": len(modules), "name": str(len(modules)), "path": "Normalize"}
    path.write_text(json.dumps([*modules, {**last, "type": "sentence_transformers.models.Normalize"}]))


@pytest.mark.parametrize("kind", writing.STUDENTS)
def test_final_normalize(kind: str, tmp_path: Path, vary: Vary) -> None:
    """CASES 27: whether an export normalises is the export's to say; the rest is the same encoder."""
    plain = writing.write_student(tmp_path / "plain" / "student", kind)
    normalized = agrees(vary(plain, with_normalize))
    assert normalized.checkpoint_sha256 == agrees(plain).checkpoint_sha256


def test_final_normalize_of_a_clip(clip_folder: Path, vary: Vary) -> None:
    """CASES 27: as a text student's."""
    folder = vary(clip_folder, with_normalize)
    assert load_pair(str(folder)).space_id == load_pair(str(clip_folder)).space_id
    agrees(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit_json("tokenizer_config.json", truncation_side="left"), ["truncation_side 'left'", "right"]),
        (
            edit_json("tokenizer_config.json", split_special_tokens=True),
            ["split_special_tokens True", "False"],
        ),
        (edit_json("sentence_bert_config.json", max_seq_length=2), ["length of 2 tokens", "no room"]),
        (
            edit_json("2_Dense/config.json", use_residual=True),
            ["residual"],
        ),
        (edit_json("2_Dense/config.json", module_input_name="token_embeddings"), ["token_embeddings"]),
        (
            write(
                "config_sentence_transformers.json",
                '{"prompts": {"query": "query: "}, "default_prompt_name": "query"}',
            ),
            ["default prompt 'query: '", "not supported", "default_prompt_name"],
        ),
        (
            write("config_sentence_transformers.json", '{"truncate_dim": 16}'),
            ["truncate_dim 16", "not supported", "null in config_sentence_transformers.json"],
        ),
        (edit_json("config.json", position_embedding_type="relative_key"), ["'relative_key'", "'absolute'"]),
        (edit_json("config.json", activation="gelu_new"), ["activation 'gelu_new'", "gelu_pytorch_tanh"]),
        (
            edit_json(
                "1_Pooling/config.json",
                pooling_mode_mean_tokens=False,
                pooling_mode_mean_sqrt_len_tokens=True,
            ),
            ["pooling 'mean_sqrt_len_tokens'"],
        ),
    ],
    ids=["truncation", "split", "no room", "residual", "tokens", "prompt", "truncated", "relative",
         "gelu_new", "sqrt"],
)  # fmt: skip
def test_text_settings_that_would_be_silently_wrong(
    change: Change, words: list[str], multilingual_folder: Path, vary: Vary
) -> None:
    """CASES 26 and 27, siblings: one sentence, before anything is traced."""
    message = text_refusal(vary(multilingual_folder, change))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "change",
    [
        edit_json("sentence_bert_config.json", do_lower_case=True),
        write("config_sentence_transformers.json", '{"prompts": {"query": "query: "}}'),
        edit_json("1_Pooling/config.json", include_prompt=False),
        edit_json("2_Dense/config.json", activation_function="torch.nn.Identity"),
        # 128 tokens are no multiple of it.
        edit_json("config.json", chunk_size_feed_forward=7),
    ],
    ids=["lower case", "prompts without default", "include_prompt", "identity", "chunks"],
)
def test_text_settings_that_are_as_in_the_original(
    change: Change, multilingual_folder: Path, vary: Vary
) -> None:
    agrees(vary(multilingual_folder, change))


def test_end_token_that_no_text_has(clip_folder: Path, vary: Vary) -> None:
    """CLIP then pools the first token of every text: all embeddings alike, and faithfully traced."""

    def change(folder: Path) -> None:
        path = folder / "0_CLIPModel" / "config.json"
        content = json.loads(path.read_text())
        # What transformers takes where a configuration names none: the published vocabulary's.
        del content["text_config"]["eos_token_id"]
        path.write_text(json.dumps(content))

    message = text_refusal(vary(clip_folder, change))
    assert "pools at token 49407" in message
    assert "ends a text with token 599" in message


def test_more_modules_behind_a_clip_are_refused(clip_folder: Path, vary: Vary) -> None:
    """Left out, the encoder would be another one."""

    def change(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        modules.append(
            {"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.models.Dense"}
        )
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Dense").mkdir()
        (folder / "1_Dense" / "config.json").write_text(
            '{"in_features": 32, "out_features": 32, "bias": false, '
            '"activation_function": "torch.nn.modules.linear.Identity"}'
        )
        torch.save({"linear.weight": torch.eye(32)}, folder / "1_Dense" / "pytorch_model.bin")

    folder = vary(clip_folder, change)
    assert "CLIPModel, Dense; supported behind a CLIP is Normalize only" in text_refusal(folder)
    assert "CLIPModel, Dense; supported behind a CLIP is Normalize only" in image_refusal(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"do_convert_rgb": False}, ["do_convert_rgb"]),
        ({"resample": "bicubic"}, ["'bicubic'", "numbers"]),
        ({"size": 40}, ["size", "40"]),
        ({"size": {"longest_edge": 48}}, ["longest_edge"]),
        ({"do_rescale": False}, ["do_rescale"]),
    ],
    ids=["rgb", "name", "smaller than the crop", "longest", "rescale"],
)
def test_other_preprocessing_is_refused(
    fields: dict[str, Any], words: list[str], clip_folder: Path, vary: Vary
) -> None:
    message = image_refusal(vary(clip_folder, edit_json("0_CLIPModel/preprocessor_config.json", **fields)))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "fields",
    [
        {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}},
        {"size": 60},
        {"do_convert_rgb": True, "rescale_factor": 1 / 255},
        {"resample": 2},
    ],
    ids=["as dicts", "larger than the crop", "as newer ones say", "bilinear"],
)
def test_preprocessing_is_the_originals(fields: dict[str, Any], clip_folder: Path, vary: Vary) -> None:
    folder = vary(clip_folder, edit_json("0_CLIPModel/preprocessor_config.json", **fields))
    image = load_image_checkpoint(folder, "x")
    noise = np.random.default_rng(0).integers(0, 256, (70, 95, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    pixels = torch.from_numpy(preprocess(picture, image.preprocessing, ImageLimits())[None])
    with torch.inference_mode():
        ours = image.build(False).eval()(pixels).numpy()
    np.testing.assert_allclose(ours, image.reference([picture]), atol=2e-5)
