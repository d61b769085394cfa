"""Checkpoints by their names on the hub; nothing here reaches it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from clipserve.errors import ExportError
from export_scripts import export
from export_scripts.checkpoints import hub
from export_scripts.checkpoints.loading import load_pair
from tests.export_scripts.checkpoints.edits import pair_refusal


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

    monkeypatch.setattr(hub, "snapshot_download", download)
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


def test_weights_are_not_fetched_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Repositories often hold the same weights as safetensors and as pickles; only the former are read."""
    files = [
        "model.safetensors", "pytorch_model-00001-of-00002.bin", "0_CLIPModel/model.safetensors",
        "0_CLIPModel/pytorch_model.bin", "2_Dense/pytorch_model.bin", "2_Dense/config.json",
        "open_clip_pytorch_model.bin",
    ]  # fmt: skip

    def download(name: str, *, ignore_patterns: list[str], allow_patterns: str | None = None) -> str:
        wanted = filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for file in wanted:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    hub.hub_folder("somebody/model", only="2_Dense/config.json")
    assert [path.name for path in tmp_path.rglob("*.*")] == ["config.json"]
    hub.hub_folder("somebody/model")
    fetched = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    # The Dense layer has its pickle only, which is read, and so has open_clip.
    assert set(files) - fetched == {"pytorch_model-00001-of-00002.bin", "0_CLIPModel/pytorch_model.bin"}
    (tmp_path / "open_clip_pytorch_model.bin").unlink()
    files.append("open_clip_model.safetensors")
    hub.hub_folder("somebody/model")
    assert (tmp_path / "open_clip_model.safetensors").is_file()
    assert not (tmp_path / "open_clip_pytorch_model.bin").exists()
