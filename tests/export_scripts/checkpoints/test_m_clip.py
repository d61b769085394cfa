"""M-CLIP's two layouts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from export_scripts.checkpoints import hub
from export_scripts.checkpoints.loading import load_text_checkpoint
from tests.export_scripts.checkpoints.edits import Change, Vary, edit_json, remove, text_refusal, write


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


def test_missing_m_clip_xlm_roberta_weights_are_refused(m_clip_xlm_roberta_folder: Path, vary: Vary) -> None:
    def change(folder: Path) -> None:
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
        del state["transformer.encoder.layer.0.output.dense.weight"]
        torch.save(state, folder / "pytorch_model.bin")

    assert "encoder.layer.0.output.dense.weight" in text_refusal(vary(m_clip_xlm_roberta_folder, change))


def test_head_that_does_not_fit_the_transformer_is_refused(m_clip_bert_folder: Path, vary: Vary) -> None:
    head = pickle.dumps([np.ones((64, 32), np.float32), np.ones(32, np.float32)])
    folder = vary(m_clip_bert_folder, lambda folder: next(folder.glob("*.pkl")).write_bytes(head))
    assert "64" in text_refusal(folder)


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


def test_decoder_is_refused(m_clip_bert_folder: Path, vary: Vary) -> None:
    """Its attention is causal, which no weight says."""
    assert "is_decoder" in text_refusal(vary(m_clip_bert_folder, edit_json("config.json", is_decoder=True)))


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
    monkeypatch.setattr(hub, "snapshot_download", download)
    load_text_checkpoint(folder, "x")
    assert asked == [("FacebookAI/tiny-xlm-roberta", "config.json")]
