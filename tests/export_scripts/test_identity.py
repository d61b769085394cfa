"""CASES 4 and 5: the identity of an encoder changes exactly when its vectors do.

What changes a vector is not listed here but asked: every field of every configuration and every tensor of
every file is changed, and the untouched original says whether that made another vector.
"""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from clipserve.encoder_spec import FloatArray
from clipserve.errors import ExportError
from export_scripts import encoders
from export_scripts.checkpoints.loading import load_image_checkpoint, load_pair, load_text_checkpoint
from export_scripts.checkpoints.pair import ImageCheckpoint, TextCheckpoint
from tests.conftest import FolderOf

SENTENCES = [
    "Two dogs in the snow",
    "été ÅNGSTRÖM 雪の中の犬",
    "a",
    "x y " * 200,
    "[CLS] <s> <|endoftext|> dogs",
]


def pictures() -> list[Image.Image]:
    """Of a size that is resized and cropped."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 71, 90, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in noise]


@dataclass(frozen=True)
class Side:
    """One encoder of one layout.

    Attributes:
        folder: of the checkpoint.
        config: path of its configuration in the folder, and the part that it is in.
        weights: path of its weights in the folder.
        image: whether it is an image encoder.
    """

    folder: Path
    config: str
    part: str | None
    weights: str
    image: bool

    def load(self, folder: Path) -> ImageCheckpoint | TextCheckpoint:
        return load_image_checkpoint(folder, "x") if self.image else load_text_checkpoint(folder, "x")

    def identity(self, folder: Path) -> str:
        return self.load(folder).checkpoint_sha256

    def vectors(self, folder: Path) -> FloatArray:
        """The original's, unit length: what a last Normalize does is no difference."""
        return unit(self.load(folder))


def unit(checkpoint: ImageCheckpoint | TextCheckpoint) -> FloatArray:
    if isinstance(checkpoint, ImageCheckpoint):
        found = checkpoint.reference(pictures())
    else:
        found = checkpoint.reference_encode(SENTENCES)
    vectors: FloatArray = found / np.linalg.norm(found, axis=1, keepdims=True)
    return vectors


@pytest.fixture(scope="module")
def sides(
    clip_folder: Path,
    multilingual_folder: Path,
    m_clip_bert_folder: Path,
    m_clip_xlm_roberta_folder: Path,
    siglip_folder: Path,
    folder_of: FolderOf,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Side]:
    # The published file is a torch pickle; as safetensors it is changed like the others.
    xlm_roberta = tmp_path_factory.mktemp("m-clip") / "xlm-roberta"
    shutil.copytree(m_clip_xlm_roberta_folder, xlm_roberta)
    save_file(
        torch.load(xlm_roberta / "pytorch_model.bin", weights_only=True), xlm_roberta / "model.safetensors"
    )
    (xlm_roberta / "pytorch_model.bin").unlink()
    chinese_clip = tmp_path_factory.mktemp("chinese-clip") / "chinese-clip"
    shutil.copytree(folder_of("chinese-clip"), chinese_clip)
    tensors = torch.load(chinese_clip / "pytorch_model.bin", weights_only=True)
    save_file(tensors, chinese_clip / "model.safetensors", metadata={"format": "pt"})
    (chinese_clip / "pytorch_model.bin").unlink()
    metaclip_2 = folder_of("metaclip-2")
    inner = "0_CLIPModel/config.json"
    clip_weights = "0_CLIPModel/model.safetensors"
    return {
        "clip image": Side(clip_folder, inner, "vision_config", clip_weights, True),
        "clip text": Side(clip_folder, inner, "text_config", clip_weights, False),
        "distilbert": Side(multilingual_folder, "config.json", None, "model.safetensors", False),
        "bert": Side(m_clip_bert_folder, "config.json", None, "model.safetensors", False),
        "xlm-roberta": Side(
            xlm_roberta, "tiny-xlm-roberta/config.json", None, "model.safetensors", False
        ),
        "siglip image": Side(siglip_folder, "config.json", "vision_config", "model.safetensors", True),
        "siglip text": Side(siglip_folder, "config.json", "text_config", "model.safetensors", False),
        "metaclip-2 text": Side(metaclip_2, "config.json", "text_config", "model.safetensors", False),
        "chinese-clip text": Side(chinese_clip, "config.json", "text_config", "model.safetensors", False),
    }  # fmt: skip


# What SigLIP's and the younger families' sides are tried with takes minutes.
SIDES = [
    *("clip image", "clip text", "distilbert", "bert", "xlm-roberta"),
    *(
        pytest.param(name, marks=pytest.mark.full)
        for name in ("siglip image", "siglip text", "metaclip-2 text", "chinese-clip text")
    ),
]


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest, sides: dict[str, Side]) -> Side:
    return sides[request.param]


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Side, Callable[[Path], object]], Path]:
    """A copy of a side's checkpoint with something changed; the one before is gone."""

    def copy(side: Side, change: Callable[[Path], object]) -> Path:
        target = tmp_path / "changed"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(side.folder, target)
        change(target)
        return target

    return copy


Changed = Callable[[Side, Callable[[Path], object]], Path]


def edit(name: str, part: str | None = None, **fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text())
        (content if part is None else content[part]).update(fields)
        path.write_text(json.dumps(content))

    return change


def other_values(value: Any) -> Iterator[Any]:
    """Of the same type, as far as one can be made without knowing what it is for."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value * 2)
    elif isinstance(value, float):
        yield value * 3 + 0.01
    elif isinstance(value, str):
        yield from ("quick_gelu", "gelu", "relative_key", "something else")
    elif value is None:
        yield from (True, 3)


@pytest.mark.parametrize("at_once", [False, True], ids=["fields", "top"])
def test_identity_follows_the_vectors_over_every_field(at_once: bool, side: Side, changed: Changed) -> None:
    """CASES 4: with each field of the configuration, named in the file or by transformers' default."""
    if at_once and side.part is None:
        pytest.skip("one configuration without parts")
    part = None if at_once else side.part
    content = json.loads((side.folder / side.config).read_text())
    fields = content if part is None else content[part]
    if not at_once:
        whole = transformers.AutoConfig.for_model(content["model_type"])
        fields = type(getattr(whole, part) if part else whole)(**fields).to_dict()
    # transformers 4 wrote it, 5 knows it no more; the checkpoint would lose its distances.
    fields |= {"position_embedding_type": "absolute"}
    identity, vectors = side.identity(side.folder), side.vectors(side.folder)
    told, wrong, refused = [], [], []
    for name, value in fields.items():
        if isinstance(value, dict | list):
            continue
        for other in other_values(value):
            folder = changed(side, edit(side.config, part, **{name: other}))
            try:
                checkpoint = side.load(folder)
            except ExportError:
                refused.append(f"{name}={other!r}")
                continue
            other_identity = checkpoint.checkpoint_sha256 != identity
            # Some change the order of additions only.
            if (np.abs(unit(checkpoint) - vectors).max() > 1e-6) != other_identity:
                wrong.append(f"{name}={other!r}")
            elif other_identity:
                told.append(name)
    assert wrong == []
    if not at_once:
        assert {"hidden_act", "activation"} & {*told}
        assert {"num_attention_heads", "n_heads"} & {*told}
        # DistilBERT's is written in its code.
        assert "layer_norm_eps" in told or "layer_norm_eps" not in fields
        assert any(name.startswith("position_embedding_type='relative") for name in refused) or part


def test_identity_follows_the_weights_over_every_tensor(side: Side, changed: Changed) -> None:
    """CASES 5: changes with those that our encoder is built from, and with no other."""
    original = side.load(side.folder)
    built = original.build(True).state_dict()
    wrong, unused = [], []
    tensors = load_file(side.folder / side.weights)
    for name, tensor in tensors.items():
        # Layers are alike.
        if ".1." in name:
            continue

        def change(folder: Path, name: str = name, tensor: torch.Tensor = tensor) -> None:
            save_file(tensors | {name: tensor * 2 + 1}, folder / side.weights, metadata={"format": "pt"})

        checkpoint = side.load(changed(side, change))
        found = checkpoint.build(True).state_dict()
        same = all(torch.equal(found[key], value) for key, value in built.items())
        if same != (checkpoint.checkpoint_sha256 == original.checkpoint_sha256):
            wrong.append(name)
        if same:
            unused.append(name)
    assert wrong == []
    assert len(unused) < len(tensors) / 2 + 5
    if side.weights == "model.safetensors" and "pooler.dense.weight" in tensors:
        assert {"pooler.dense.weight", "pooler.dense.bias"} <= {*unused}


def padded_with_another_token(folder: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        edit(name, pad_token="<unk>")(folder)


@pytest.mark.parametrize(
    ("layout", "change"),
    [
        ("distilbert", edit("sentence_bert_config.json", do_lower_case=True)),
        ("distilbert", edit("sentence_bert_config.json", max_seq_length=40)),
        ("bert", edit("tokenizer_config.json", do_lower_case=True)),
        ("bert", edit("tokenizer_config.json", tokenize_chinese_chars=False)),
        ("bert", edit("tokenizer_config.json", strip_accents=True)),
        ("bert", edit("tokenizer_config.json", model_max_length=50)),
        ("xlm-roberta", edit("tokenizer_config.json", model_max_length=50)),
        ("clip text", edit("0_CLIPModel/tokenizer_config.json", model_max_length=50)),
        ("clip image", edit("0_CLIPModel/preprocessor_config.json", size=60)),
        ("clip image", edit("0_CLIPModel/preprocessor_config.json", resample=2)),
        ("clip image", edit("0_CLIPModel/preprocessor_config.json", image_std=[0.5, 0.5, 0.5])),
        ("siglip image", edit("preprocessor_config.json", resample=2)),
        # The padding is seen.
        ("siglip text", padded_with_another_token),
    ],
)
def test_identity_changes_with_the_input(
    layout: str, change: Callable[[Path], object], sides: dict[str, Side], changed: Changed
) -> None:
    """CASES 4: lower case, accents, lengths, preprocessing; and these do change vectors."""
    side = sides[layout]
    folder = changed(side, change)
    assert np.abs(side.vectors(folder) - side.vectors(side.folder)).max() > 1e-4
    assert side.identity(folder) != side.identity(side.folder)


def other_decoder(folder: Path) -> None:
    path = folder / "tokenizer.json"
    definition = json.loads(path.read_text())
    assert definition["decoder"]["cleanup"] is True
    definition["decoder"]["cleanup"] = False
    definition["truncation"] = {
        "direction": "Right", "max_length": 20, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    path.write_text(json.dumps(definition))


def in_half_precision(folder: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_position_ids(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors") | {"embeddings.position_ids": torch.arange(140)[None]}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("layout", "change"),
    [
        ("distilbert", edit("config.json", dtype="float16")),
        ("distilbert", edit("config.json", torch_dtype="bfloat16")),
        ("clip image", edit("0_CLIPModel/config.json", dtype="float16")),
        ("bert", edit("config.json", dtype="float16")),
        ("xlm-roberta", edit("tiny-xlm-roberta/config.json", dtype="float16")),
        ("distilbert", edit("config.json", transformers_version="4.1.0", _name_or_path="somewhere/else")),
        ("distilbert", edit("tokenizer_config.json", name_or_path="x", clean_up_tokenization_spaces=False)),
        ("distilbert", edit("tokenizer_config.json", pad_token="[MASK]")),
        ("distilbert", other_decoder),
        ("bert", with_position_ids),
        ("distilbert", lambda folder: (folder / "README.md").write_text("# A model")),
    ],
)
def test_identity_does_not_change_with_what_no_vector_depends_on(
    layout: str, change: Callable[[Path], object], sides: dict[str, Side], changed: Changed
) -> None:
    """CASES 4 and 5: a precision that is only named, versions, names, cosmetics, the way back to a text."""
    side = sides[layout]
    folder = changed(side, change)
    np.testing.assert_array_equal(side.vectors(folder), side.vectors(side.folder))
    assert side.identity(folder) == side.identity(side.folder)


def test_half_precision_is_read_as_float32(sides: dict[str, Side], changed: Changed) -> None:
    """The same numbers stored in two and in four bytes are one checkpoint."""
    side = sides["distilbert"]
    half = side.identity(changed(side, in_half_precision))

    def back(folder: Path) -> None:
        in_half_precision(folder)
        tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    assert side.identity(changed(side, back)) == half


@pytest.mark.parametrize("layout", ["bert", "xlm-roberta"])
def test_pooler_that_is_missing_is_not_hashed(layout: str, sides: dict[str, Side], changed: Changed) -> None:
    """CASES 5: transformers makes one up at random, another each time."""
    side = sides[layout]

    def drop(folder: Path) -> None:
        tensors = load_file(folder / side.weights)
        kept = {name: tensor for name, tensor in tensors.items() if "pooler." not in name}
        assert len(kept) == len(tensors) - 2
        save_file(kept, folder / side.weights, metadata={"format": "pt"})

    folder = changed(side, drop)
    assert side.identity(folder) == side.identity(folder) == side.identity(side.folder)


def test_two_names_of_one_end_token(sides: dict[str, Side], changed: Changed) -> None:
    """Published configurations of one CLIP name 2, which means the highest id, or the end token itself."""
    side = sides["clip text"]
    folder = changed(side, edit(side.config, "text_config", eos_token_id=599))
    np.testing.assert_array_equal(side.vectors(folder), side.vectors(side.folder))
    assert side.identity(folder) == side.identity(side.folder)


def test_space_is_of_both_sides_and_of_no_path(
    clip_folder: Path, multilingual_folder: Path, tmp_path: Path
) -> None:
    pair = load_pair(str(clip_folder), str(multilingual_folder))
    own = load_pair(str(clip_folder))
    assert pair.image.checkpoint_sha256 == own.image.checkpoint_sha256
    assert pair.space_id != own.space_id
    assert len({pair.image.checkpoint_sha256, pair.text.checkpoint_sha256, own.text.checkpoint_sha256}) == 3


def test_a_clip_keeps_its_identity(clip_folder: Path) -> None:
    """As before specs said how pictures are resized and texts padded: no index is thrown away for that."""
    pair = load_pair(str(clip_folder))
    assert pair.image.checkpoint_sha256.startswith("b117489b725d907e65590ccd634d0de0")
    assert pair.text.checkpoint_sha256.startswith("2db71086a577d69d1dbfefbc368dbb9c")
    assert pair.space_id == "9c59d95221582962"


def test_encoders_read_no_configuration() -> None:
    """What they depend on goes through `Architecture`, of which the identity takes every field."""
    files = [*Path(encoders.__file__).parent.glob("*.py")]
    assert len(files) > 4
    names = {
        (node.name, inner.id if isinstance(inner, ast.Name) else inner.attr)
        for file in files
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Name | ast.Attribute)
    }
    readers = {where for where, name in names if name == "config" and not where.endswith("_architecture")}
    assert readers == {"check_supported", "numbers_of"}
