"""What is exported and compared with its original: an image or a text encoder, alike to all that follows."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipserve.encoder_spec import TOKENIZER_FILE, FloatArray, Modality
from clipserve.images import ImageLimits, decode_image, preprocess
from clipserve.preprocessing import ImagePreprocessing, TextPreprocessing
from clipserve.settings import Settings
from clipserve.tokens import Tokenizer
from export_scripts.checkpoints.pair import CheckpointPair, ImageCheckpoint, TextCheckpoint
from export_scripts.parity.inputs import (
    GOLDEN_SENTENCE,
    SENTENCES,
    PictureFile,
    cropped_noise,
    golden_png,
    picture_files,
    pictures,
    random_tokens,
)

# Batch and length of the trace. Parity is checked at others, so that a baked-in shape shows.
TRACE_BATCH = 2
TRACE_LENGTH = 9

# Written by `demo.calibration`.
CALIBRATION = Path(__file__).parents[2] / "demo" / "calibration"

Run = Callable[..., FloatArray]
Comparison = tuple[str, Callable[[Run], FloatArray], Callable[[], FloatArray]]


@dataclass(frozen=True)
class Subject:
    """One encoder to be exported, whatever its modality.

    Attributes:
        checkpoint: with the original.
        image, text: sections of the spec; None for the other modality's.
        example: what it is traced with, a tensor for each of its inputs.
        comparisons: a name, the exported encoder's answer given a way to run it, the original's answer.
        golden_input: see `Golden.input`.
        golden_tensors: the same as the encoder takes it.
        golden_reference: the original's answer to it.
        calibration: reads what int8 is calibrated on, batches as the encoder takes them; none of it is in a
            comparison.
        extra_files: put into the file beside the spec.
    """

    modality: Modality
    checkpoint: ImageCheckpoint | TextCheckpoint
    image: ImagePreprocessing | None
    text: TextPreprocessing | None
    example: tuple[Tensor, ...]
    comparisons: list[Comparison]
    golden_input: str
    golden_tensors: tuple[Tensor, ...]
    golden_reference: Callable[[], FloatArray]
    calibration: Callable[[], list[tuple[Tensor, ...]]]
    extra_files: dict[str, str]


def _image(pair: CheckpointPair) -> Subject:
    checkpoint = pair.image
    limits = ImageLimits()

    def pixels(images: list[Image.Image]) -> Tensor:
        arrays = [preprocess(image, checkpoint.preprocessing, limits) for image in images]
        return torch.from_numpy(np.stack(arrays))

    def comparison(name: str, images: list[Image.Image]) -> Comparison:
        return name, lambda run: run(pixels(images)), lambda: checkpoint.reference(images)

    served = Settings()
    edge = checkpoint.preprocessing.shortest_edge

    def from_bytes(file: PictureFile) -> Comparison:
        def pixels_of() -> Tensor:
            image = decode_image(
                file.data, served.images, shortest_edge=edge, draft_factor=served.draft_factor
            )
            return torch.from_numpy(preprocess(image, checkpoint.preprocessing, served.images)[None])

        return (
            f"file: {file.name}",
            lambda run: run(pixels_of()),
            lambda: checkpoint.reference([file.original]),
        )

    noise = cropped_noise(2, 8, checkpoint.preprocessing)
    png = golden_png()
    golden = decode_image(png, limits)
    return Subject(
        modality="image",
        checkpoint=checkpoint,
        image=checkpoint.preprocessing,
        text=None,
        example=(pixels(cropped_noise(1, TRACE_BATCH, checkpoint.preprocessing)),),
        comparisons=[
            comparison("noise, batch 1", noise[:1]),
            comparison("noise, batch 3", noise[1:4]),
            comparison("noise, batch 8", noise),
            comparison("photograph-like pictures of 4 sizes", pictures(3)),
            *map(from_bytes, picture_files(8, edge, served.draft_factor)),
        ],
        golden_input=base64.b64encode(png).decode("ascii"),
        golden_tensors=(pixels([golden]),),
        golden_reference=lambda: checkpoint.reference([golden]),
        calibration=lambda: [(pixels([Image.open(path) for path in sorted(CALIBRATION.glob("*.jpg"))]),)],
        extra_files={},
    )


def _text(pair: CheckpointPair) -> Subject:
    checkpoint = pair.text
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.preprocessing)
    longest = checkpoint.preprocessing.context_length
    longer = min(17, longest)  # than the trace, and no multiple of what texts are padded to

    def tokens(seed: int, lengths: list[int]) -> tuple[Tensor, Tensor]:
        return random_tokens(tokenizer, checkpoint.tokenizer, seed, lengths)

    def comparison(name: str, seed: int, lengths: list[int]) -> Comparison:
        inputs = tokens(seed, lengths)
        return name, lambda run: run(*inputs), lambda: checkpoint.reference(*inputs)

    def tensors(texts: list[str]) -> tuple[Tensor, ...]:
        padded = tokenizer.pad([tokenizer.tokenize(text).ids for text in texts])
        return tuple(torch.from_numpy(array) for array in padded)

    return Subject(
        modality="text",
        checkpoint=checkpoint,
        image=None,
        text=checkpoint.preprocessing,
        example=tokens(1, [TRACE_LENGTH - 2, TRACE_LENGTH]),
        comparisons=[
            comparison("random tokens, 1 x 5", 2, [5]),
            comparison(f"random tokens, 3 x {longer}, padded", 3, [longer, 4, 11]),
            comparison("random tokens, 8 x 12", 4, [12] * 8),
            comparison(f"random tokens, 2 x {longest}, padded", 5, [longest, 3]),
            (
                "sentences in many scripts, in one batch",
                lambda run: run(*tensors(list(SENTENCES))),
                lambda: checkpoint.reference_encode(SENTENCES),
            ),
        ],
        golden_input=GOLDEN_SENTENCE,
        golden_tensors=tensors([GOLDEN_SENTENCE]),
        golden_reference=lambda: checkpoint.reference_encode([GOLDEN_SENTENCE]),
        calibration=lambda: [
            tensors((CALIBRATION / "sentences.txt").read_text(encoding="utf-8").splitlines()),
        ],
        extra_files={TOKENIZER_FILE: checkpoint.tokenizer},
    )


SUBJECTS: dict[Modality, Callable[[CheckpointPair], Subject]] = {"image": _image, "text": _text}
