from __future__ import annotations

import contextlib
import copyreg
import json
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor

from clipserve.errors import ExportError
from clipserve.images import ImageLimits, preprocess
from clipserve.tokens import Tokenizer
from export_scripts import export
from export_scripts.checkpoints import sentence_transformers as loading
from export_scripts.checkpoints.sentence_transformers import (
    CheckpointPair,
    TextCheckpoint,
    load_image_checkpoint,
    load_pair,
    load_text_checkpoint,
)
from standins import checkpoints as writing

Change = Callable[[Path], object]
Vary = Callable[[Path, Change], Path]


@pytest.fixture
def vary(tmp_path: Path) -> Vary:
    """Copies a checkpoint and changes something in the copy."""

    def varied(folder: Path, change: Change) -> Path:
        copy = tmp_path / folder.name
        shutil.copytree(folder, copy)
        change(copy)
        return copy

    return varied


def edit_json(name: str, **fields: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def write(name: str, content: bytes | str) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def remove(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def edit_tensors(name: str, edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        edit(tensors)
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return change


def drop(prefix: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        names = [name for name in tensors if name.startswith(prefix)]
        assert names
        for name in names:
            del tensors[name]

    return edit


def dense_of(weight: torch.Tensor) -> Change:
    return lambda folder: torch.save({"linear.weight": weight}, folder / "2_Dense" / "pytorch_model.bin")


def text_refusal(folder: Path) -> str:
    with pytest.raises(ExportError) as caught:
        load_text_checkpoint(folder, "x")
    return str(caught.value)


def image_refusal(folder: Path) -> str:
    with pytest.raises(ExportError) as caught:
        load_image_checkpoint(folder, "x")
    return str(caught.value)


def pair_refusal(model: str, text_model: str | None = None) -> str:
    with pytest.raises(ExportError) as caught:
        load_pair(model, text_model)
    return str(caught.value)


# ---- every layout


def test_clip_layout(clip_folder: Path) -> None:
    pair = load_pair(str(clip_folder))
    assert (pair.model_id, pair.image.name, pair.text.name) == ("clip", "clip", "clip")
    assert pair.image.embedding_dim == pair.text.embedding_dim == 32
    assert pair.image.logit_scale == pytest.approx(np.exp(4.6052), rel=1e-6)
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


@pytest.mark.parametrize(
    ("fixture", "context_length", "pad_token_id"),
    [("multilingual_folder", 128, 0), ("m_clip_bert_folder", 140, 0), ("m_clip_xlm_roberta_folder", 138, 1)],
)
def test_text_layouts(
    fixture: str, context_length: int, pad_token_id: int, request: pytest.FixtureRequest
) -> None:
    text = load_text_checkpoint(request.getfixturevalue(fixture), "a name")
    assert (text.name, text.embedding_dim) == ("a name", 32)
    assert (text.preprocessing.context_length, text.preprocessing.pad_token_id) == (
        context_length,
        pad_token_id,
    )
    embeddings = text.reference_encode(["Two dogs in the snow", "雪", "x " * 500])
    assert embeddings.shape == (3, 32)
    assert embeddings.dtype == np.float32
    # The originals do not normalise.
    assert np.abs(np.linalg.norm(embeddings, axis=1) - 1).max() > 0.01


@pytest.mark.parametrize(
    "fixture", ["clip_folder", "multilingual_folder", "m_clip_bert_folder", "m_clip_xlm_roberta_folder"]
)
def test_every_text_layout_pairs_with_the_image_encoder(
    fixture: str, clip_folder: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(fixture)
    pair = load_pair(str(clip_folder), str(folder))
    assert (pair.model_id, pair.text.name) == ("clip", folder.name)


def test_reference_embeds_pictures(clip_folder: Path) -> None:
    image = load_image_checkpoint(clip_folder, "clip")
    pictures = [Image.new("RGB", (60, 50), "red"), Image.new("RGB", (50, 70), "blue")]
    embeddings = image.reference(pictures)
    assert embeddings.shape == (2, 32)
    assert np.abs(embeddings[0] - embeddings[1]).max() > 0.01


def test_m_clip_bert_head_is_applied_with_its_bias(m_clip_bert_folder: Path, vary: Vary) -> None:
    """The pickle holds `[in, out]`, the transpose of a torch weight, and the bias."""
    weight, bias = pickle.loads(next(m_clip_bert_folder.glob("*.pkl")).read_bytes())
    doubled = vary(
        m_clip_bert_folder,
        lambda folder: next(folder.glob("*.pkl")).write_bytes(pickle.dumps([2 * weight, bias])),
    )
    once, twice = (
        load_text_checkpoint(f, "x").reference_encode(["two dogs"]) for f in (m_clip_bert_folder, doubled)
    )
    np.testing.assert_allclose(twice - bias, 2 * (once - bias), atol=1e-5)


def test_names_and_model_ids(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spec says a checkpoint's name and never where somebody keeps it."""
    folder = tmp_path / "my clip (v2)"
    shutil.copytree(clip_folder, folder)
    pair = load_pair(f"{folder}/")
    assert (pair.model_id, pair.image.name) == ("my-clip-v2-", "my clip (v2)")
    monkeypatch.chdir(folder)
    assert load_pair(".").image.name == "my clip (v2)"


def test_empty_text_model_is_none(clip_folder: Path) -> None:
    """As `make export TEXT_MODEL=` gives it."""
    assert load_pair(str(clip_folder), "").text.name == "clip"


def test_published_text_encoder_of_a_published_image_encoder(
    clip_folder: Path, multilingual_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, **options: Any) -> str:
        asked.append(repository)
        return str(multilingual_folder if "multilingual" in repository else clip_folder)

    monkeypatch.setattr(loading, "snapshot_download", download)
    pair = load_pair("clip-ViT-B-32")
    assert list(dict.fromkeys(asked)) == [
        "sentence-transformers/clip-ViT-B-32",
        "sentence-transformers/clip-ViT-B-32-multilingual-v1",
    ]
    assert (pair.model_id, pair.image.name, pair.text.name) == (
        "clip-ViT-B-32", "clip-ViT-B-32", "clip-ViT-B-32-multilingual-v1",
    )  # fmt: skip
    # Of others its own text tower, and another one by its full name.
    assert load_pair("clip-ViT-L-14").text.name == "clip-ViT-L-14"
    assert load_pair("clip-ViT-L-14", "M-CLIP/multilingual").text.name == "M-CLIP/multilingual"
    assert asked[-1] == "M-CLIP/multilingual"


def test_demo_is_in_the_repository(
    clip_folder: Path, multilingual_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "DEMO_IMAGE", clip_folder)
    monkeypatch.setattr(loading, "DEMO_TEXT", multilingual_folder)
    pair = load_pair("demo")
    assert (pair.model_id, pair.image.name, pair.text.name) == ("demo", "demo", "demo")
    assert pair.text.preprocessing.context_length == 128
    assert loading.DEMO_IMAGE != loading.DEMO_TEXT


# ---- not to be had


@pytest.mark.parametrize(
    "name", ["clip-ViT-B-32", "openai/clip-vit-base-patch32", "a/b/c", "no such name!", "x" * 200]
)
def test_hub_out_of_reach(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    message = pair_refusal(name)
    assert "\n" not in message
    assert len(message) < 300 + len(name)
    assert name in message
    assert "make export MODEL=demo" in message
    assert "folder" in message


def test_text_model_out_of_reach(clip_folder: Path) -> None:
    assert "MODEL=demo" in pair_refusal(str(clip_folder), "M-CLIP/XLM-Roberta-Large-Vit-B-32")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "../nowhere", "~/nowhere"])
def test_folder_that_does_not_exist(name: str) -> None:
    message = pair_refusal(name)
    assert f"checkpoint folder {name!r} does not exist" in message


# ---- wrong layouts


def test_no_pair_of_one_size(clip_folder: Path, tmp_path: Path) -> None:
    shape = writing.TextShape(48, 2, 2, 2000, 140, embedding_dim=64)
    message = pair_refusal(str(clip_folder), str(writing.write_multilingual(tmp_path / "wide", shape)))
    assert "32-d" in message
    assert "wide 64-d" in message
    assert "TEXT_MODEL" in message


def test_text_checkpoints_have_no_image_encoder(multilingual_folder: Path, m_clip_bert_folder: Path) -> None:
    for folder in (multilingual_folder, m_clip_bert_folder):
        assert "not a CLIP checkpoint, so it has no image encoder" in image_refusal(folder)


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
            edit_json("preprocessor_config.json", size={"height": 48, "width": 48}),
            ["not supported", "height"],
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit_json("config.json", model_type="gpt2"), ["model_type 'gpt2'", "supported are", "M-CLIP"]),
        (write("config.json", "{}"), ["model_type None"]),
        (write("config.json", "[]"), ["list, should be an object"]),
        (write("config.json", "{"), ["not a readable checkpoint config"]),
        (remove("config.json"), ["not a readable checkpoint config"]),
        (
            remove("M-BERT-Base-69-ViT Linear Weights.pkl"),
            ["0 pickled linear heads", "M-BERT-Base-69-ViT Linear Weights.pkl"],
        ),
        (write("another.pkl", b""), ["2 pickled linear heads"]),
    ],
    ids=["gpt2", "no type", "list", "no json", "no config", "no head", "two heads"],
)  # fmt: skip
def test_wrong_m_clip_bert_layouts(
    change: Change, words: list[str], m_clip_bert_folder: Path, vary: Vary
) -> None:
    message = text_refusal(vary(m_clip_bert_folder, change))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (remove("pytorch_model.bin"), ["neither model.safetensors nor pytorch_model.bin"]),
        (write("pytorch_model.bin", b"x" * 99), ["pytorch_model.bin: not a file of tensors"]),
        (write("pytorch_model.bin", b""), ["pytorch_model.bin: not a file of tensors"]),
        (edit_json("config.json", numDims=33), ["do not fit its config.json", "LinearTransformation"]),
        (edit_json("config.json", transformerDimensions=47), ["do not fit its config.json"]),
        (edit_json("tiny-xlm-roberta/config.json", hidden_size=64), ["do not fit its config.json"]),
        (
            edit_json("config.json", modelBase="xlm-roberta-nowhere"),
            ["FacebookAI/xlm-roberta-nowhere", "MODEL=demo"],
        ),
    ],
    ids=["no weights", "garbage", "empty", "numDims", "dimensions", "base size", "no base"],
)  # fmt: skip
def test_wrong_m_clip_xlm_roberta_layouts(
    change: Change, words: list[str], m_clip_xlm_roberta_folder: Path, vary: Vary
) -> None:
    message = text_refusal(vary(m_clip_xlm_roberta_folder, change))
    for word in words:
        assert word in message


def test_empty_folder(tmp_path: Path) -> None:
    assert "not a CLIP checkpoint" in pair_refusal(str(tmp_path)) or "cannot load" in pair_refusal(
        str(tmp_path)
    )
    assert "not a readable checkpoint config" in text_refusal(tmp_path)


@pytest.mark.parametrize(
    ("fixture", "change"),
    [
        ("multilingual_folder", lambda folder: shutil.rmtree(folder / "2_Dense")),
        ("multilingual_folder", write("model.safetensors", b"x" * 999)),
        ("m_clip_bert_folder", write("model.safetensors", b"x" * 999)),
        ("m_clip_bert_folder", remove("model.safetensors")),
        ("m_clip_xlm_roberta_folder", write("model.safetensors", b"x" * 999)),
        ("m_clip_xlm_roberta_folder", write("config.json", '{"model_type": "M-CLIP"}')),
        ("m_clip_xlm_roberta_folder", lambda folder: torch.save([1, 2], folder / "pytorch_model.bin")),
        ("m_clip_xlm_roberta_folder", write("tokenizer.json", "{")),
    ],
    ids=["no dense", "damaged", "bert damaged", "bert no weights", "xlm-r damaged", "xlm-r no base",
         "xlm-r list",
         "xlm-r tokenizer"],
)  # fmt: skip
def test_damaged_text_checkpoints_are_refused_in_our_words(
    fixture: str, change: Change, vary: Vary, request: pytest.FixtureRequest
) -> None:
    assert text_refusal(vary(request.getfixturevalue(fixture), change))


def test_unknown_resampling_is_refused_in_our_words(clip_folder: Path, vary: Vary) -> None:
    assert "99" in image_refusal(
        vary(clip_folder, edit_json("0_CLIPModel/preprocessor_config.json", resample=99))
    )


@pytest.mark.parametrize("prefix", ["visual_projection", "vision_model.encoder.layers.1.mlp.fc1"])
def test_missing_image_weights_are_refused(prefix: str, clip_folder: Path, vary: Vary) -> None:
    """transformers fills them with random numbers, which every parity check would find faithfully traced."""
    folder = vary(clip_folder, edit_tensors("0_CLIPModel/model.safetensors", drop(prefix)))
    assert prefix in image_refusal(folder)


@pytest.mark.parametrize(
    ("fixture", "prefix"),
    [
        ("multilingual_folder", "transformer.layer.0.ffn"),
        ("multilingual_folder", "embeddings.LayerNorm"),
        ("m_clip_bert_folder", "encoder.layer.1.output"),
    ],
)
def test_missing_text_weights_are_refused(
    fixture: str, prefix: str, vary: Vary, request: pytest.FixtureRequest
) -> None:
    folder = vary(request.getfixturevalue(fixture), edit_tensors("model.safetensors", drop(prefix)))
    assert prefix in text_refusal(folder)


def test_missing_m_clip_xlm_roberta_weights_are_refused(m_clip_xlm_roberta_folder: Path, vary: Vary) -> None:
    def change(folder: Path) -> None:
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
        del state["transformer.encoder.layer.0.output.dense.weight"]
        torch.save(state, folder / "pytorch_model.bin")

    assert "encoder.layer.0.output.dense.weight" in text_refusal(vary(m_clip_xlm_roberta_folder, change))


@pytest.mark.parametrize(
    ("fixture", "files"),
    [("multilingual_folder", ["tokenizer.json", "vocab.txt"]), ("m_clip_bert_folder", ["vocab.txt"])],
)
def test_missing_vocabulary_is_refused(
    fixture: str, files: list[str], vary: Vary, request: pytest.FixtureRequest
) -> None:
    """transformers makes up a tokenizer that knows no word."""
    assert "tokenizer" in text_refusal(vary(request.getfixturevalue(fixture), remove(*files)))


def test_context_length_never_exceeds_the_positions(multilingual_folder: Path, vary: Vary) -> None:
    folder = vary(multilingual_folder, edit_json("sentence_bert_config.json", max_seq_length=512))
    try:
        context_length = load_text_checkpoint(folder, "x").preprocessing.context_length
    except ExportError:
        return
    assert context_length <= 140


def test_head_that_does_not_fit_the_transformer_is_refused(m_clip_bert_folder: Path, vary: Vary) -> None:
    head = pickle.dumps([np.ones((64, 32), np.float32), np.ones(32, np.float32)])
    folder = vary(m_clip_bert_folder, lambda folder: next(folder.glob("*.pkl")).write_bytes(head))
    assert "64" in text_refusal(folder)


# ---- pickles


def call(module: str, name: str, *arguments: str) -> bytes:
    """A pickle that calls `module.name` with texts when it is loaded."""
    pushed = b"".join(b"V" + argument.encode("raw_unicode_escape") + b"\n" for argument in arguments)
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n(" + pushed + b"tR."


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that hostile pickles would make."""
    return tmp_path / "mark"


def call_with_names(module: str, name: str, argument: str) -> bytes:
    """Likewise, with an empty dict after the text."""
    return call(module, name, argument).removesuffix(b"tR.") + b"(dtR."


def hostile(mark: Path) -> dict[str, bytes]:
    touch, python = f"touch {mark}", f"open({str(mark)!r}, 'w').close()"
    return {
        "os.system": call("os", "system", touch),
        "posix.system": call("posix", "system", touch),
        "os.popen": call("os", "popen", touch),
        "subprocess": call("subprocess", "getoutput", touch),
        "eval": call("builtins", "eval", python),
        "exec": call("builtins", "exec", python),
        "eval by its old name": call("__builtin__", "eval", python),
        "import": call("builtins", "__import__", "antigravity"),
        "getattr": call("builtins", "getattr", "x", "upper"),
        "numpy's runstring": call_with_names("numpy.testing._private.utils", "runstring", python),
        "numpy.load": call("numpy", "load", str(mark)),
        "numpy.savetxt": call("numpy", "savetxt", str(mark), "x"),
        "a method of an admitted class": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        "a module of an admitted module": call("numpy", "ctypeslib.load_library", "x", "y"),
        "an admitted name of another module": call("os", "dtype", "x"),
        "torch.load": call("torch", "load", str(mark)),
        "torch's storage": call("torch.storage", "_load_from_bytes", "x"),
        "torch.hub": call("torch.hub", "load", "x", "y"),
        "copyreg": call("copyreg", "__newobj__", "x"),
        "behind a plausible head": (
            pickle.dumps([np.ones((48, 32), np.float32)], protocol=3)[:-2]
            + call("os", "system", touch)[:-1] + b"e."
        ),
        "extension registry": b"\x80\x02\x82\x01.",
        "persistent id": b"Pabc\n.",
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(hostile(Path())))
def test_hostile_heads_are_refused_and_not_run(
    kind: str, m_clip_bert_folder: Path, vary: Vary, mark: Path
) -> None:
    head = hostile(mark)[kind]
    folder = vary(m_clip_bert_folder, lambda folder: next(folder.glob("*.pkl")).write_bytes(head))
    message = text_refusal(folder)
    assert "refused, not a pickle of two arrays" in message
    # Stopped at the name, not by what came of it.
    assert "which is no array" in message or kind in ("extension registry", "persistent id")
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["os.system", "eval", "numpy's runstring", "subprocess", "numpy.savetxt"])
def test_hostile_heads_would_run_elsewhere(kind: str, mark: Path) -> None:
    """What the test above is worth: the standard unpickler does run them."""
    with contextlib.suppress(ValueError):  # savetxt makes its file, then finds that a text is no array
        pickle.loads(hostile(mark)[kind])
    assert mark.exists()


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path):
        self.command = f"touch {mark}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize(
    ("fixture", "name"),
    [
        ("m_clip_xlm_roberta_folder", "pytorch_model.bin"),
        pytest.param("multilingual_folder", "pytorch_model.bin"),
        pytest.param("multilingual_folder", "2_Dense/pytorch_model.bin"),
        pytest.param("m_clip_bert_folder", "pytorch_model.bin"),
    ],
)
def test_hostile_tensor_files_are_refused(
    fixture: str, name: str, vary: Vary, mark: Path, request: pytest.FixtureRequest
) -> None:
    def change(folder: Path) -> None:
        if name == "pytorch_model.bin":
            (folder / "model.safetensors").unlink(missing_ok=True)
        torch.save({"linear.weight": Hostile(mark)}, folder / name)

    folder = vary(request.getfixturevalue(fixture), change)
    assert text_refusal(folder)


@pytest.mark.parametrize(
    "fixture", ["m_clip_xlm_roberta_folder", "multilingual_folder", "m_clip_bert_folder"]
)
def test_hostile_tensor_files_are_not_run(
    fixture: str, vary: Vary, mark: Path, request: pytest.FixtureRequest
) -> None:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink(missing_ok=True)
        for path in {*folder.rglob("pytorch_model.bin"), folder / "pytorch_model.bin"}:
            torch.save({"linear.weight": Hostile(mark)}, path)

    folder = vary(request.getfixturevalue(fixture), change)
    with pytest.raises((ExportError, pickle.UnpicklingError)):
        load_text_checkpoint(folder, "x")
    assert not mark.exists()


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


GOOD = np.ones((48, 32), np.float32), np.ones(32, np.float32)


@pytest.mark.parametrize(
    "content",
    [
        {"weight": GOOD[0], "bias": GOOD[1]}, [GOOD[0]], [*GOOD, GOOD[1]], GOOD[0], 5, None, "ab", [1, 2],
        [GOOD[0].tolist(), GOOD[1].tolist()], [GOOD[0], np.ones(31, np.float32)],
        [GOOD[0], np.ones((1, 32), np.float32)],
        [GOOD[0][0], GOOD[1]], [GOOD[0][None], GOOD[1]], [GOOD[0], np.float32(1)], [GOOD[1], GOOD[0]],
        [GOOD[0].astype(int), GOOD[1]], [GOOD[0], GOOD[1].astype(int)], [GOOD[0].astype(complex), GOOD[1]],
        [GOOD[0].astype(str), GOOD[1]], [GOOD[0].astype(object), GOOD[1]], [GOOD[0].astype(bool), GOOD[1]],
    ],
    ids=lambda content: str(type(content).__name__),
)  # fmt: skip
def test_heads_of_another_shape_are_refused(content: Any, m_clip_bert_folder: Path, vary: Vary) -> None:
    folder = vary(
        m_clip_bert_folder, lambda folder: next(folder.glob("*.pkl")).write_bytes(pickle.dumps(content))
    )
    assert "refused" in text_refusal(folder)


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", b"\x80\x04", pickle.dumps(list(GOOD))[:-500]], ids=len
)
def test_damaged_heads_are_refused(content: bytes, m_clip_bert_folder: Path, vary: Vary) -> None:
    folder = vary(m_clip_bert_folder, lambda folder: next(folder.glob("*.pkl")).write_bytes(content))
    assert "refused, not a pickle of two arrays" in text_refusal(folder)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"], ids=str)
def test_heads_of_every_pickle_protocol(protocol: int, dtype: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(6, 4)).astype(dtype), rng.normal(size=4).astype(dtype)
    path = tmp_path / "head.pkl"
    for weight_order in (weight, np.asfortranarray(weight)):
        path.write_bytes(pickle.dumps([weight_order, bias], protocol=protocol))
        found = loading._read_linear_head(path)
        np.testing.assert_array_equal(found[0], weight)
        np.testing.assert_array_equal(found[1], bias)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3])
def test_heads_of_old_numpy_are_read(protocol: int, tmp_path: Path) -> None:
    """The published one was written when NumPy's core had another name."""
    data = pickle.dumps(list(GOOD), protocol=protocol)
    assert b"numpy._core.multiarray" in data
    path = tmp_path / "head.pkl"
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert [array.shape for array in loading._read_linear_head(path)] == [(48, 32), (32,)]


def test_extension_registry_is_no_way_in() -> None:
    """The pickle of the extension registry above is only hostile where a code is registered; none is."""
    assert copyreg._inverted_registry == {}  # type: ignore[attr-defined]


# ---- space and weights


def spaces(clip: Path, text: Path) -> str:
    return load_pair(str(clip), str(text)).space_id


def test_space_of_equal_checkpoints_is_equal(
    pair: CheckpointPair, clip_folder: Path, multilingual_folder: Path, tmp_path: Path
) -> None:
    clip, text = tmp_path / "another name", tmp_path / "another text"
    shutil.copytree(clip_folder, clip)
    shutil.copytree(multilingual_folder, text)
    assert spaces(clip, text) == pair.space_id
    assert len(pair.space_id) == 16
    int(pair.space_id, 16)


def nudged(file: str, name: str) -> Change:
    """Flips the lowest bit of one number of one weight."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(torch.int32).view(-1)[-1] ^= 1

    return edit_tensors(file, edit)


def swap_two_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    definition = json.loads(path.read_text())
    vocabulary = definition["model"]["vocab"]
    first, second = list(vocabulary)[100:102]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(definition))


@pytest.mark.parametrize(
    ("side", "change"),
    [
        ("clip", nudged("0_CLIPModel/model.safetensors", "visual_projection.weight")),
        ("clip", nudged("0_CLIPModel/model.safetensors", "vision_model.encoder.layers.0.mlp.fc1.bias")),
        ("clip", edit_json("0_CLIPModel/preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])),
        ("clip", edit_json("0_CLIPModel/preprocessor_config.json", resample=2)),
        ("text", nudged("model.safetensors", "transformer.layer.1.ffn.lin1.weight")),
        ("text", dense_of(torch.ones(32, 48))),
        ("text", edit_json("sentence_bert_config.json", max_seq_length=127)),
        ("text", swap_two_tokens),
    ],
    ids=["projection", "layer", "mean", "resample", "text layer", "dense", "context", "tokenizer"],
)  # fmt: skip
def test_space_changes_with_weights_and_preprocessing(
    side: str, change: Change, pair: CheckpointPair, clip_folder: Path, multilingual_folder: Path, vary: Vary
) -> None:
    folders = {"clip": clip_folder, "text": multilingual_folder}
    folders[side] = vary(folders[side], change)
    assert spaces(folders["clip"], folders["text"]) != pair.space_id


def test_space_does_not_depend_on_the_text_tower_that_is_not_served(
    pair: CheckpointPair, clip_folder: Path, multilingual_folder: Path, vary: Vary
) -> None:
    changed = vary(clip_folder, nudged("0_CLIPModel/model.safetensors", "text_projection.weight"))
    assert spaces(changed, multilingual_folder) == pair.space_id
    assert load_pair(str(changed)).space_id != load_pair(str(clip_folder)).space_id


def to_torch_file(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def to_shards(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, inside in shards.items():
        save_file({name: tensors[name] for name in inside}, folder / shard, metadata={"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {name: shard for shard, inside in shards.items() for name in inside},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def dense_to_safetensors(folder: Path) -> None:
    path = folder / "2_Dense" / "pytorch_model.bin"
    save_file(torch.load(path, weights_only=True), path.with_name("model.safetensors"))
    path.unlink()


@pytest.mark.parametrize("change", [to_torch_file, to_shards, dense_to_safetensors])
def test_text_weights_do_not_depend_on_files(
    change: Change, pair: CheckpointPair, multilingual_folder: Path, vary: Vary
) -> None:
    folder = vary(multilingual_folder, change)
    assert load_text_checkpoint(folder, "x").weights_sha256 == pair.text.weights_sha256


@pytest.mark.parametrize("change", [to_torch_file, to_shards])
def test_image_weights_do_not_depend_on_files(
    change: Change, pair: CheckpointPair, clip_folder: Path, vary: Vary
) -> None:
    folder = vary(clip_folder, lambda folder: change(folder / "0_CLIPModel"))
    assert load_image_checkpoint(folder, "x").weights_sha256 == pair.image.weights_sha256


@pytest.mark.parametrize("old", [True, False], ids=["torch file", "safetensors"])
def test_m_clip_xlm_roberta_weights_do_not_depend_on_files(
    old: bool, m_clip_xlm_roberta_folder: Path, vary: Vary
) -> None:
    def change(folder: Path) -> None:
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
        if old:
            # Older transformers wrote position ids, which are no weights.
            state["transformer.embeddings.position_ids"] = torch.arange(140)[None]
            torch.save(state, folder / "pytorch_model.bin")
        else:
            save_file(state, folder / "model.safetensors")
            (folder / "pytorch_model.bin").unlink()

    expected = load_text_checkpoint(m_clip_xlm_roberta_folder, "x").weights_sha256
    assert load_text_checkpoint(vary(m_clip_xlm_roberta_folder, change), "x").weights_sha256 == expected


def test_other_seeds_are_other_weights(pair: CheckpointPair, tmp_path: Path) -> None:
    other = load_pair(str(writing.write_clip(tmp_path / "clip", seed=9)))
    assert other.image.weights_sha256 != pair.image.weights_sha256
    assert other.image.weights_sha256 != other.text.weights_sha256


# ---- B3: what NumPy's own functions would do with a head


def flagged_dtype() -> bytes:
    """ATTACKS B3: a float's dtype that is told to be one of objects: NumPy takes the numbers for pointers."""
    array = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02f8\x89\x88\x87Rq\x01"
    state = b"(K\x01K\x01\x85" + dtype + b"\x89U\x08" + b"A" * 8 + b"tb"
    flags = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"
    return b"\x80\x02](" + array + state + b"h\x01" + flags + b"e."


def head_of(dtype: bytes, shape: bytes = b"K\x02K\x02\x86", data: bytes = b"\0" * 16) -> bytes:
    """A list of one array, pickled by hand: `dtype` makes the dtype, `shape` the shape."""
    array = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    content = b"B" + len(data).to_bytes(4, "little") + data
    return b"\x80\x03](" + array + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb" + b"e."


F4 = b"cnumpy\ndtype\nU\x02f4\x89\x88\x87R"
MALFORMED = {
    "dtype with flags": flagged_dtype(),
    "objects": head_of(F4.replace(b"f4", b"O8")),
    "void": head_of(F4.replace(b"f4", b"V4")),
    "integers": head_of(F4.replace(b"f4", b"i4")),
    "extended floats": head_of(F4.replace(b"U\x02f4", b"U\x03f16")),
    "fields": head_of(b"cnumpy\ndtype\n](U\x01aU\x02f4\x86e\x85R"),
    "dtype state with flags first": head_of(F4 + b"(K\x03U\x01|NNNK\x08K\x01K\x3ftb"),
    "dtype state that is no tuple": head_of(F4 + b"}b"),
    "dtype that is a text": head_of(b"U\x02f4"),
    "negative edge": head_of(F4, b"J\xff\xff\xff\xffJ\xfc\xff\xff\xff\x86"),
    "edges beyond the data": head_of(F4, b"K\x02K\x03\x86"),
    "edges whose product overflows": head_of(F4, b"\x8a\x09" + bytes(8) + b"\x01K\x02\x86"),
    "edge that is a bool": head_of(F4, b"\x88K\x04\x86"),
    "edge that is a text": head_of(F4, b"U\x012U\x012\x86"),
    "many edges": head_of(F4, b"(" + b"K\x01" * 99 + b"K\x04t"),
    "bytes that are a text": b"\x80\x02](" + call("_codecs", "encode", "a", "rot13")[:-1] + b"e.",
    "announced bytes": b"\x80\x05\x96" + (1 << 28).to_bytes(8, "little") + b".",
    "announced place": b"\x80\x04]r\xff\xff\xff\x7f(e.",
    "state twice": head_of(F4)[:-2] + b"h\x00e.",
    "array without contents": b"\x80\x02](cnumpy._core.multiarray\n_reconstruct\n)Rcnumpy\nndarray\n)Re.",
    "the stand-ins themselves": b"\x80\x02](cnumpy\nndarray\ncnumpy\ndtype\ne.",
    "attributes by state": head_of(F4)[:-2] + b"}U\x05valueK\x01sbe.",
}  # fmt: skip


@pytest.mark.parametrize("kind", list(MALFORMED))
def test_malformed_heads_are_refused(kind: str, tmp_path: Path) -> None:
    """ATTACKS B3: an array is a shape and bytes of floats; nothing of NumPy's reads what the file says.

    Nor is memory taken for what a few bytes announce.
    """
    path = tmp_path / "head.pkl"
    path.write_bytes(MALFORMED[kind])
    tracemalloc.start()
    try:
        with pytest.raises(ExportError, match="refused, not a pickle of two arrays") as caught:
            loading._read_linear_head(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_numpy_believes_a_pickle() -> None:
    """What the test above is worth; in a process of its own, which the objects at 'AAAAAAAA' may end."""
    code = (
        "import os, pickle, sys\n"
        "array, dtype = pickle.loads(sys.stdin.buffer.read()), None\n"
        "print(array[1].hasobject, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=flagged_dtype(), capture_output=True, check=False
    )
    assert done.stdout.strip() == b"True"


def test_nothing_of_numpy_runs_in_a_pickle() -> None:
    """ATTACKS B3: every name that a head may call is ours."""
    stand_ins = loading._ArrayUnpickler.STAND_INS
    assert {value.__module__ for value in stand_ins.values()} == {loading.__name__}


# ---- lengths, tokenizers and modules that people have


def agrees(folder: Path) -> TextCheckpoint:
    """The text checkpoint of a folder, whose built encoder was compared with its original on sentences."""
    text = load_text_checkpoint(folder, "x")
    tokenizer = Tokenizer(text.tokenizer, text.preprocessing)
    sentences = ["two dogs", "犬 " * 300, "Été", "", "x" * 900]
    inputs = tokenizer.pad([tokenizer.tokenize(sentence).ids for sentence in sentences])
    with torch.inference_mode():
        ours = text.build(False).eval()(*(torch.from_numpy(array) for array in inputs)).numpy()
    np.testing.assert_allclose(ours, text.reference_encode(sentences), atol=1e-5)
    assert max(map(len, inputs[0])) == text.preprocessing.context_length
    return text


def clip_tokenizer(**fields: Any) -> Change:
    return edit_json("0_CLIPModel/tokenizer_config.json", **fields)


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
    folder = writing.write_student(tmp_path / "student", roberta=True, length=length)
    assert agrees(folder).preprocessing.context_length == context_length


@pytest.mark.parametrize(("length", "context_length"), [(512, 140), (60, 60)])
def test_bert_student(length: int, context_length: int, tmp_path: Path) -> None:
    folder = writing.write_student(tmp_path / "student", roberta=False, length=length)
    assert agrees(folder).preprocessing.context_length == context_length


def with_normalize(folder: Path) -> None:
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    last = {"idx": len(modules), "name": str(len(modules)), "path": "Normalize"}
    path.write_text(json.dumps([*modules, {**last, "type": "sentence_transformers.models.Normalize"}]))


@pytest.mark.parametrize("roberta", [True, False], ids=["xlm-roberta", "bert"])
def test_final_normalize(roberta: bool, tmp_path: Path, vary: Vary) -> None:
    """CASES 27: whether an export normalises is the export's to say; the rest is the same encoder."""
    plain = writing.write_student(tmp_path / "plain" / "student", roberta=roberta)
    normalized = agrees(vary(plain, with_normalize))
    assert normalized.checkpoint_sha256 == agrees(plain).checkpoint_sha256


def test_final_normalize_of_a_clip(clip_folder: Path, vary: Vary) -> None:
    """CASES 27: as a text student's."""
    folder = vary(clip_folder, with_normalize)
    assert load_pair(str(folder)).space_id == load_pair(str(clip_folder)).space_id
    agrees(folder)


def only_sentencepiece(content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / "sentencepiece.bpe.model").write_bytes(content)

    return change


@pytest.fixture(scope="session")
def sentencepiece_model() -> bytes:
    return writing.sentencepiece_model()


@pytest.mark.parametrize("student", [True, False], ids=["student", "m-clip"])
def test_sentencepiece_model_alone(
    student: bool, sentencepiece_model: bytes, m_clip_xlm_roberta_folder: Path, tmp_path: Path, vary: Vary
) -> None:
    """CASES 28: SentencePiece's own ids, moved by the one place that XLM-R's special tokens take."""
    original = SentencePieceProcessor(model_proto=sentencepiece_model)
    source = (
        writing.write_student(tmp_path / "source" / "student", roberta=True)
        if student
        else m_clip_xlm_roberta_folder
    )
    text = agrees(vary(source, only_sentencepiece(sentencepiece_model)))
    tokenizer = Tokenizer(text.tokenizer, text.preprocessing)
    for sentence in writing.corpus()[::7]:
        pieces = original.encode(sentence)
        expected = (0, *(3 if piece == 0 else piece + 1 for piece in pieces), 2)
        assert tokenizer.tokenize(sentence).ids == expected, sentence


@pytest.mark.parametrize("content", [b"", b"no model", b"\n\x0c\x00"], ids=len)
def test_sentencepiece_model_that_is_none(
    content: bytes, m_clip_xlm_roberta_folder: Path, vary: Vary
) -> None:
    """CASES 28: transformers would ask for tiktoken."""
    message = text_refusal(vary(m_clip_xlm_roberta_folder, only_sentencepiece(content)))
    assert "not a SentencePiece model" in message
    assert "tiktoken" not in message


def test_sentencepiece_is_not_installed(
    sentencepiece_model: bytes, m_clip_xlm_roberta_folder: Path, vary: Vary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES 28: one true sentence."""
    monkeypatch.setattr(loading, "is_sentencepiece_available", lambda: False)
    message = text_refusal(vary(m_clip_xlm_roberta_folder, only_sentencepiece(sentencepiece_model)))
    assert "pip install sentencepiece protobuf" in message
    assert "tiktoken" not in message


def added_token(name: str, identifier: int) -> Change:
    """Adds a token to a `tokenizer.json`, as `tokenizer.add_tokens` and saving do."""

    def change(folder: Path) -> None:
        path = folder / name
        definition = json.loads(path.read_text())
        definition["added_tokens"].append(
            {
                "id": identifier, "content": "<dogs>", "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": False,
            }
        )  # fmt: skip
        path.write_text(json.dumps(definition))

    return change


def test_added_token_without_a_row(
    multilingual_folder: Path, m_clip_bert_folder: Path, clip_folder: Path, vary: Vary
) -> None:
    """CASES 3: a text with it would raise inside the batch of everybody else."""
    message = text_refusal(vary(multilingual_folder, added_token("tokenizer.json", 2000)))
    for word in ("'<dogs>'", "largest token id is 2000", "2000 rows", "resize_token_embeddings"):
        assert word in message
    for folder, change, rows in (
        (m_clip_bert_folder, edit_json("tokenizer_config.json", extra_special_tokens=["<dogs>"]), 2000),
        (clip_folder, clip_tokenizer(extra_special_tokens=["<dogs>"]), 600),
    ):
        message = text_refusal(vary(folder, change))
        assert f"largest token id is {rows} ('<dogs>'), the embedding table has {rows} rows" in message


def test_added_token_with_a_row(multilingual_folder: Path, vary: Vary) -> None:
    """CASES 3: a resized table takes it; the highest id is one less than the rows."""

    def change(folder: Path) -> None:
        added_token("tokenizer.json", 2000)(folder)
        edit_json("config.json", vocab_size=2001)(folder)
        edit_tensors("model.safetensors", add_row)(folder)

    def add_row(tensors: dict[str, torch.Tensor]) -> None:
        name = "embeddings.word_embeddings.weight"
        tensors[name] = torch.cat([tensors[name], torch.ones(1, 48)])

    text = agrees(vary(multilingual_folder, change))
    assert text.preprocessing.vocabulary_size == 2001
    assert Tokenizer(text.tokenizer, text.preprocessing).tokenize("<dogs>").ids[1] == 2000


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
        (edit_json("config.json", position_embedding_type="relative_key"), ["'relative_key'", "'absolute'"]),
        (edit_json("config.json", activation="gelu_new"), ["activation 'gelu_new'", "gelu, quick_gelu"]),
        (
            edit_json(
                "1_Pooling/config.json",
                pooling_mode_mean_tokens=False,
                pooling_mode_mean_sqrt_len_tokens=True,
            ),
            ["pooling 'mean_sqrt_len_tokens'"],
        ),
    ],
    ids=["truncation", "split", "no room", "residual", "tokens", "prompt", "relative", "gelu_new", "sqrt"],
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
    ],
    ids=["lower case", "prompts without default", "include_prompt", "identity"],
)
def test_text_settings_that_are_as_in_the_original(
    change: Change, multilingual_folder: Path, vary: Vary
) -> None:
    agrees(vary(multilingual_folder, change))


def test_decoder_is_refused(m_clip_bert_folder: Path, vary: Vary) -> None:
    """Its attention is causal, which no weight says."""
    assert "is_decoder" in text_refusal(vary(m_clip_bert_folder, edit_json("config.json", is_decoder=True)))


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


# ---- what belongs together


def test_both_ways_to_write_a_hub_name(
    clip_folder: Path, multilingual_folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    """CASES 6: with its owner as without, and the output says which encoders were taken."""
    asked = []

    def download(repository: str, **options: Any) -> str:
        asked.append(repository)
        return str(multilingual_folder if "multilingual" in repository else clip_folder)

    def stop(*arguments: Any, **options: Any) -> None:
        raise ExportError("far enough")

    monkeypatch.setattr(loading, "snapshot_download", download)
    monkeypatch.setattr(export, "export_encoders", stop)
    told = []
    for name in ("clip-ViT-B-32", "sentence-transformers/clip-ViT-B-32"):
        with pytest.raises(ExportError, match="far enough"):
            export.export_pair(name, None, "cpu", "fp32", tmp_path)
        captured = capsys.readouterr()
        told.append(captured.out.splitlines()[1])
        assert captured.err == ""
    # Each twice, since pickled weights are fetched only where they are alone.
    assert asked == 2 * [
        "sentence-transformers/clip-ViT-B-32", "sentence-transformers/clip-ViT-B-32",
        "sentence-transformers/clip-ViT-B-32-multilingual-v1",
        "sentence-transformers/clip-ViT-B-32-multilingual-v1",
    ]  # fmt: skip
    assert told[0] == told[1]
    assert "image encoder of clip-ViT-B-32, text encoder of clip-ViT-B-32-multilingual-v1" in told[0]
    short, long = load_pair("clip-ViT-B-32"), load_pair("sentence-transformers/clip-ViT-B-32")
    assert (short.model_id, short.image.name, short.text.name) == (
        long.model_id, long.image.name, long.text.name
    )  # fmt: skip


@pytest.mark.parametrize(
    ("image", "text", "fits"),
    [
        ("clip-ViT-B-32", "clip-ViT-B-32-multilingual-v1", True),
        ("openai/clip-vit-base-patch32", "sentence-transformers/clip-ViT-B-32-multilingual-v1", True),
        ("openai/clip-vit-base-patch32", "M-CLIP/XLM-Roberta-Large-Vit-B-32", True),
        ("clip-ViT-L-14", "M-CLIP/XLM-Roberta-Large-Vit-L-14", True),
        ("clip-ViT-B-32", "somebody/a-student-of-their-own", True),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "clip-ViT-B-32-multilingual-v1", False),
        ("clip-ViT-B-16", "clip-ViT-B-32-multilingual-v1", False),
        ("clip-ViT-B-16", "M-CLIP/M-BERT-Base-ViT-B", False),
        ("openai/clip-vit-large-patch14-336", "M-CLIP/LABSE-Vit-L-14", False),
    ],
)
def test_known_names_that_do_not_fit(
    image: str, text: str, fits: bool, clip_folder: Path, multilingual_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """CASES 13: equal size is not equal space."""
    folders = iter([clip_folder, clip_folder, multilingual_folder, multilingual_folder])
    monkeypatch.setattr(loading, "snapshot_download", lambda *arguments, **options: str(next(folders)))
    doubt = load_pair(image, text).doubt
    if fits:
        assert doubt is None
        return
    assert doubt is not None
    assert image in doubt
    assert text in doubt
    assert "equal size is not equal space" in doubt
    assert "TEXT_MODEL" in doubt


def test_text_tower_of_another_clip(clip_folder: Path, tmp_path: Path, vary: Vary) -> None:
    """CASES 13: told by the weights of the image encoder that lies beside it, whatever the names."""
    other = writing.write_clip(tmp_path / "other" / "clip", seed=9)
    doubt = load_pair(str(clip_folder), str(other)).doubt
    assert doubt is not None
    assert "was trained beside an image encoder of other weights than clip" in doubt
    # A tower that was trained further beside the same image encoder fits.
    tuned = vary(
        clip_folder,
        edit_tensors(
            "0_CLIPModel/model.safetensors", lambda tensors: tensors["text_projection.weight"].mul_(2)
        ),
    )
    assert load_pair(str(clip_folder), str(tuned)).doubt is None
    assert load_pair(str(clip_folder)).doubt is None


def test_doubt_is_printed(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CASES 13."""
    other = writing.write_clip(tmp_path / "clip", seed=9)
    monkeypatch.setattr(export, "export_encoders", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.export_pair(str(clip_folder), str(other), "cpu", "fp32", tmp_path)
    assert "export: warning: clip was trained beside" in capsys.readouterr().err


def test_of_an_xlm_roberta_base_only_the_configuration_is_fetched(
    m_clip_xlm_roberta_folder: Path, vary: Vary, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its weights, 2 GB, are in the M-CLIP checkpoint itself."""
    asked = []

    def download(repository: str, **options: Any) -> str:
        asked.append((repository, options["allow_patterns"]))
        return str(tmp_path / "base")

    def move(folder: Path) -> None:
        (folder / "tiny-xlm-roberta").rename(tmp_path / "base")

    folder = vary(m_clip_xlm_roberta_folder, move)
    monkeypatch.setattr(loading, "snapshot_download", download)
    load_text_checkpoint(folder, "x")
    assert asked == [("FacebookAI/tiny-xlm-roberta", "config.json")]


def test_weights_are_not_fetched_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Repositories often hold the same weights as safetensors and as pickles; only the former are read."""
    files = [
        "model.safetensors", "pytorch_model-00001-of-00002.bin", "0_CLIPModel/model.safetensors",
        "0_CLIPModel/pytorch_model.bin", "2_Dense/pytorch_model.bin", "2_Dense/config.json",
    ]  # fmt: skip

    def download(name: str, *, ignore_patterns: list[str], allow_patterns: str | None = None) -> str:
        wanted = filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for file in wanted:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(loading, "snapshot_download", download)
    loading.hub_folder("somebody/model", only="2_Dense/config.json")
    assert [path.name for path in tmp_path.rglob("*.*")] == ["config.json"]
    loading.hub_folder("somebody/model")
    fetched = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    # The Dense layer has its pickle only, which is read.
    assert set(files) - fetched == {"pytorch_model-00001-of-00002.bin", "0_CLIPModel/pytorch_model.bin"}
