"""What belongs together: spaces, weights, and names that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export_scripts import export
from export_scripts.checkpoints import hub
from export_scripts.checkpoints.loading import load_image_checkpoint, load_pair, load_text_checkpoint
from export_scripts.checkpoints.pair import CheckpointPair
from standins import checkpoints as writing
from tests.export_scripts.checkpoints.edits import Change, Vary, dense_of, edit_json, edit_tensors


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


def test_other_seeds_are_other_weights(pair: CheckpointPair, tmp_path: Path) -> None:
    other = load_pair(str(writing.write_clip(tmp_path / "clip", seed=9)))
    assert other.image.weights_sha256 != pair.image.weights_sha256
    assert other.image.weights_sha256 != other.text.weights_sha256


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
    monkeypatch.setattr(hub, "snapshot_download", lambda *arguments, **options: str(next(folders)))
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
