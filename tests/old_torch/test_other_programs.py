"""What is exported for other programs, called as they do, in their PyTorch, beside the originals."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers.implementations import BertWordPieceTokenizer
from torch import Tensor

from clipserve.encoder_spec import FloatArray
from demo.captions import load_vocabularies
from export_scripts.checkpoints.loading import load_pair
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.packages.contracts import CONTRACTS
from export_scripts.packages.wrapped import export_wrapped
from export_scripts.parity.inputs import SENTENCES
from standins.checkpoints import (
    M_BERT_BASE,
    TINY_TEXT,
    XLM_R_LARGE,
    write_clip,
    write_m_clip_bert,
    write_m_clip_xlm_roberta,
    write_multilingual,
)
from tests.conftest import WrittenOnce
from tests.export_scripts.exports import PICTURES, unit
from tests.golden import OTHER_PIXELS
from tests.old_torch.torches import needs, python_of

# As tests/export_scripts/test_publish.py has it: torch's own filter for warnings about its own code.
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn.functional")

BOUND = 1e-5

Batch = list[Tensor]
# One text, or several of a batch, as a program makes tokens of them: ids and mask.
Tokenize = Callable[[Sequence[str]], Batch]


def call(program: str, path: Path, batches: Sequence[Batch], folder: Path) -> list[FloatArray | str]:
    """What the program gets back for each batch, in its PyTorch."""
    inputs, outputs = folder / "inputs.pt", folder / "embeddings.pt"
    torch.save(batches, inputs)
    version = CONTRACTS[program].torch
    script = Path(__file__).with_name("call_encoder.py")
    done = subprocess.run(
        [str(python_of(version)), "-I", str(script), program, str(path), str(inputs), str(outputs)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(version)
    answers = torch.load(outputs, weights_only=True)
    return [answer if isinstance(answer, str) else answer.numpy() for answer in answers]


def padded(rows: Sequence[Sequence[int]], pad: int) -> Batch:
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows])
    return [ids, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])]


def opensearch_tokens(path: Path, folder: Path) -> Tokenize:
    """DJL's tokenizer is this library, and reads the file as it is."""
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == sorted([f"{path.stem}.pt", "tokenizer.json"])
        tokenizer = tokenizers.Tokenizer.from_str(archive.read("tokenizer.json").decode())

    def tokenize(texts: Sequence[str]) -> Batch:
        encodings = tokenizer.encode_batch(list(texts))
        return [torch.tensor([e.ids for e in encodings]), torch.tensor([e.attention_mask for e in encodings])]

    return tokenize


def elasticsearch_tokens(path: Path, folder: Path) -> Tokenize:
    """Its own tokenizers, in Java, are BERT's and XLM-R's; here they are others' of the same vocabulary."""
    vocabulary = json.loads((path.parent / "vocabulary.json").read_text("utf-8"))
    config = json.loads((path.parent / "config.json").read_text("utf-8"))
    ((kind, settings),) = config["inference_config"]["text_embedding"]["tokenization"].items()
    tokens, most = vocabulary["vocabulary"], settings["max_sequence_length"]
    if kind == "bert":
        bert = BertWordPieceTokenizer(
            {token: i for i, token in enumerate(tokens)}, lowercase=settings["do_lower_case"]
        )
        bert.enable_truncation(most)
        return lambda texts: padded([bert.encode(text).ids for text in texts], tokens.index("[PAD]"))
    xlm_r = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert [xlm_r.convert_ids_to_tokens(i) for i in range(len(tokens))] == tokens
    assert len(vocabulary["scores"]) == len(tokens)
    return lambda texts: padded(
        [xlm_r(text, truncation=True, max_length=most)["input_ids"] for text in texts], tokens.index("<pad>")
    )


def aias_tokens(path: Path, folder: Path) -> Tokenize:
    """Every token of a text, as from a program that cuts none. (The SDK's own cuts at 512.)"""
    tokens = (path.parent / "vocab.txt").read_text("utf-8").splitlines()
    with zipfile.ZipFile(path.parent.with_suffix(".zip")) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            file.name: file.read_bytes() for file in path.parent.iterdir()
        }
    bert = BertWordPieceTokenizer({token: i for i, token in enumerate(tokens)}, lowercase=False)
    return lambda texts: padded([bert.encode(text).ids for text in texts], tokens.index("[PAD]"))


TOKENS: dict[str, Callable[[Path, Path], Tokenize]] = {
    "opensearch": opensearch_tokens,
    "elasticsearch": elasticsearch_tokens,
    "aias": aias_tokens,
}

# Of M-CLIP's with as many positions as the published ones, so that 512 tokens are not cut, and 600 are.
LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "clip": write_clip,
    "multilingual": write_multilingual,
    "m-clip-bert": partial(write_m_clip_bert, shape=replace(TINY_TEXT, positions=M_BERT_BASE.positions)),
    "m-clip-xlm-r": partial(
        write_m_clip_xlm_roberta, shape=replace(TINY_TEXT, positions=XLM_R_LARGE.positions)
    ),
}

# Layouts whose tokenizer the program has.
TEXTS = [
    ("aias", "multilingual"),
    ("aias", "m-clip-bert"),
    ("opensearch", "clip"),
    ("opensearch", "multilingual"),
    ("opensearch", "m-clip-bert"),
    ("opensearch", "m-clip-xlm-r"),
    ("elasticsearch", "multilingual"),
    ("elasticsearch", "m-clip-bert"),
    ("elasticsearch", "m-clip-xlm-r"),
]


def of_length(pair: CheckpointPair, tokens: int) -> str:
    """A text of so many tokens, special ones included."""
    tokenizer = tokenizers.Tokenizer.from_str(pair.text.tokenizer)
    text = next(word for word in ("a", "i", "o", "1", ".", ",") if len(tokenizer.encode(word).ids) == 3)
    while len(tokenizer.encode(text).ids) < tokens:
        text += f" {text[0]}"
    assert len(tokenizer.encode(text).ids) == tokens
    return text


def texts_of(pair: CheckpointPair) -> list[str]:
    """Forty languages, what breaks tokenizers, and 3, all, 512 and 600 tokens."""
    lengths = (3, pair.text.preprocessing.context_length, 512, 600)
    languages = [vocabulary.example[0] for vocabulary in load_vocabularies().values()]
    assert len(languages) == 40
    return [*languages, *SENTENCES, *(of_length(pair, length) for length in lengths)]


def exported(program: str, pair: CheckpointPair, store: Path, modality: str) -> Path:
    """The encoder of a modality that a program loads."""
    contract = CONTRACTS[program]
    export_wrapped(contract, pair, "cpu", None, store)
    found = [path for pattern in contract.encoders for path in (store / program).glob(pattern)]
    (path,) = [path for path in found if f"-{modality}-" in str(path.relative_to(store))]
    return path


@pytest.mark.parametrize(
    ("program", "layout"),
    [pytest.param(*row, marks=needs(CONTRACTS[row[0]].torch)) for row in TEXTS],
)
def test_texts(
    program: str, layout: str, clip_folder: Path, written_once: WrittenOnce, tmp_path: Path
) -> None:
    folder = written_once(f"called-{layout}", LAYOUTS[layout])
    pair = load_pair(str(clip_folder), str(folder))
    path = exported(program, pair, tmp_path, "text")
    tokenize = TOKENS[program](path, folder)
    texts = texts_of(pair)
    original = unit(pair.text.reference_encode(texts))
    # Vectors that are all alike would prove nothing.
    assert (original @ original.T).min() < 0.9
    batches = [tokenize([text]) for text in texts] + [tokenize(texts), tokenize(texts[:3])]
    longest = max(batch[0].shape[1] for batch in batches)
    assert longest >= 600 if program == "aias" else longest == pair.text.preprocessing.context_length
    *alone, together, three = call(program, path, batches, tmp_path)
    worst = max(
        float(np.abs(np.asarray(found) - wanted).max())
        for found, wanted in (
            (np.concatenate([np.asarray(one) for one in alone]), original),
            (together, original),
            (three, original[:3]),
        )
    )
    print(f"{program}, PyTorch {CONTRACTS[program].torch}, texts of {layout}: max-abs {worst:.2g}")
    assert worst <= BOUND


@needs(CONTRACTS["aias"].torch)
def test_pictures(pair: CheckpointPair, clip_folder: Path, tmp_path: Path) -> None:
    """The SDK hands over what CLIP's own processor does: float32, rescaled and normalised."""
    path = exported("aias", pair, tmp_path, "image")
    with zipfile.ZipFile(path.with_suffix(".zip")) as archive:
        assert archive.namelist() == [path.name]
        assert archive.read(path.name) == path.read_bytes()
    processor: Any = transformers.AutoImageProcessor.from_pretrained(
        clip_folder / "0_CLIPModel", backend="pil", local_files_only=True
    )
    pixels = processor(PICTURES, return_tensors="pt")["pixel_values"]
    assert pixels.dtype == torch.float32
    original = unit(pair.image.reference(PICTURES))
    *alone, together = call("aias", path, [*([row[None]] for row in pixels), [pixels]], tmp_path)
    worst = max(
        float(np.abs(np.concatenate([np.asarray(one) for one in found]) - original).max())
        for found in (alone, [together])
    )
    print(f"aias, PyTorch {CONTRACTS['aias'].torch}, pictures: max-abs {worst:.2g}")
    assert worst <= BOUND


@needs(CONTRACTS["aias"].torch)
def test_other_pixels_are_refused(pair: CheckpointPair, tmp_path: Path) -> None:
    """CASES 16, the other way round: ours are uint8, the SDK's float32."""
    path = exported("aias", pair, tmp_path, "image")
    others = [pixels for name, pixels in OTHER_PIXELS.items() if pixels.dtype != torch.float32]
    assert len(others) == len(OTHER_PIXELS) - 2
    others.append(torch.zeros(1, 3, 32, 32))
    for answer in call("aias", path, [[pixels] for pixels in others], tmp_path):
        assert "pixel_values must be float32 [N, 3, 48, 48]" in answer
