"""Encoders for the image-and-text SDK of AIAS, a Java program on DJL 0.22.1: `make export FORMAT=aias`.

Facts are from the sources of mymagicpower/AIAS, folder `1_sdks/1_image_sdks/image_text_40_sdk`. It runs them
with PyTorch 1.13.1, which has no `scaled_dot_product_attention`.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import tokenizers
import torch
from torch import Tensor, nn

from clipserve.encoder_spec import EncoderSpec
from clipserve.preprocessing import ImagePreprocessing
from export_scripts import zips
from export_scripts.checkpoints.pair import CLIP_B_32, CheckpointPair, last_part
from export_scripts.encoders.layers import PIXEL_MAX, check_callers_pixels, check_pixels
from export_scripts.encoders.spelling import BEFORE_2_0
from export_scripts.packages.conventions import Convention, Exported
from export_scripts.packages.folders import link_or_copy
from export_scripts.packages.vocabularies import refusal, tokenizer_of, word_piece
from export_scripts.parity.subjects import Subject

VOCABULARY_FILE = "vocab.txt"

# It cuts a text there, whatever the encoder's context; its end token stays.
MOST_TOKENS = 512

# What the SDK calls its files, which are of this pair.
SDK_TEXT_MODEL = "m-bert-base-vit-b"
SDK_NAMES = {"image": "CLIP-ViT-B-32-IMAGE", "text": "M-BERT-Base-ViT-B"}


class NormalizedPixels(nn.Module):
    """An image encoder whose caller rescales and normalises."""

    scale: Tensor
    offset: Tensor

    def __init__(self, encoder: nn.Module, preprocessing: ImagePreprocessing):
        super().__init__()
        self.encoder = encoder
        self.size = (preprocessing.crop_height, preprocessing.crop_width)
        self.message = (
            f"pixel_values must be float32 [N, 3, {self.size[0]}, {self.size[1]}], RGB, resized, cropped, "
            "rescaled to [0, 1] and normalised; 'make export' writes an encoder that takes uint8 ones"
        )
        # As buffers, so that they go to the device that the weights are loaded to.
        self.register_buffer("scale", PIXEL_MAX * torch.tensor(preprocessing.std).view(1, 3, 1, 1))
        self.register_buffer("offset", PIXEL_MAX * torch.tensor(preprocessing.mean).view(1, 3, 1, 1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Float32 `[N, 3, H, W]`, normalised, to float32 `[N, D]`."""
        pixel_values = check_callers_pixels(pixel_values, torch.float32, *self.size, self.message)
        embedding: Tensor = self.encoder(pixel_values * self.scale + self.offset)
        return embedding


class CutTexts(nn.Module):
    """A text encoder whose inputs come in one dictionary, and may be longer than its context."""

    def __init__(self, encoder: nn.Module, context_length: int, end_token: int):
        super().__init__()
        self.encoder = encoder
        self.context_length = context_length
        self.end_token = end_token

    def forward(self, input: dict[str, Tensor]) -> Tensor:
        """Cuts each text as the original does: at the context length, its end token last.

        Args:
            input: `input_ids`, `attention_mask`, and `token_type_ids` that are not looked at; int64 `[N, L]`.

        Returns:
            float32 `[N, D]`.
        """
        most = self.context_length
        mask = input["attention_mask"]
        is_cut = mask[:, most:].sum(1, keepdim=True) > 0  # [N, 1]
        ids, mask = input["input_ids"][:, :most], mask[:, :most]
        # Positions counted from 1, without a device constant.
        is_last = (ids >= 0).long().cumsum(1) >= most
        embedding: Tensor = self.encoder(ids.masked_fill(is_cut.logical_and(is_last), self.end_token), mask)
        return embedding


def pictures(subject: Subject) -> Convention:
    """It rescales and normalises pixels itself."""
    preprocessing = subject.image
    assert preprocessing is not None

    def arguments(pixel_values: Tensor) -> tuple[Tensor]:
        mean, std = (
            torch.tensor(numbers, device=pixel_values.device).view(1, 3, 1, 1)
            for numbers in (preprocessing.mean, preprocessing.std)
        )
        return ((pixel_values.float() / PIXEL_MAX - mean) / std,)

    return Convention(
        wrap=lambda encoder: NormalizedPixels(encoder, preprocessing),
        arguments=arguments,
        result=lambda output: output,
        tokens=None,
        spelling={**BEFORE_2_0, check_pixels: lambda pixel_values, *_: pixel_values},
    )


def texts(subject: Subject) -> Convention:
    """It has BERT's cased tokenizer, DJL's own, and reads `vocab.txt`; no text is cut before 512 tokens.

    Raises:
        ExportError: the checkpoint has another.
    """
    preprocessing = subject.text
    assert preprocessing is not None
    definition = tokenizer_of(subject)
    vocabulary = word_piece(definition)
    if vocabulary is None or vocabulary.lowercase:
        raise refusal("the AIAS SDK", "BERT's cased WordPiece", definition)
    first, last = (vocabulary.tokens.index(token) for token in ("[CLS]", "[SEP]"))
    tokenizer = tokenizers.Tokenizer.from_str(definition)

    def tokens(text: str) -> list[int]:
        ids = tokenizer.encode(vocabulary.as_asked(text), add_special_tokens=False).ids
        return [first, *ids[: MOST_TOKENS - 2], last]

    return Convention(
        wrap=lambda encoder: CutTexts(encoder, preprocessing.context_length, last),
        arguments=lambda ids, mask: (
            {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": mask},
        ),
        result=lambda output: output,
        tokens=tokens,
        spelling=BEFORE_2_0,
        left_to_caller=vocabulary.left_to_caller,
    )


def lay_out(exported: Exported, folder: Path) -> list[Path]:
    """For pictures `NAME.pt`, for texts `NAME/` with it and `vocab.txt`; and `NAME.zip` with the same."""
    name = name_of(exported.spec, exported.pair)
    inside = folder / name if exported.spec.text is not None else folder
    inside.mkdir(exist_ok=True)
    files = [inside / f"{name}.pt"]
    link_or_copy(exported.path, files[0])
    if exported.spec.text is not None:
        vocabulary = word_piece(exported.pair.text.tokenizer)
        assert vocabulary is not None
        files.append(inside / VOCABULARY_FILE)
        files[-1].write_text("".join(f"{token}\n" for token in vocabulary.tokens), encoding="utf-8")
    archive = folder / f"{name}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for path in files:
            with path.open("rb") as reader:
                zips.add(target, path.name, reader, path.stat().st_size)
    return [files[0] if inside == folder else inside, archive]


def name_of(spec: EncoderSpec, pair: CheckpointPair) -> str:
    """What the SDK's own program looks for, of its pair on a CPU; else of the encoder."""
    is_its_pair = last_part(pair.image.name) in CLIP_B_32 and last_part(pair.text.name) == SDK_TEXT_MODEL
    if not is_its_pair:
        return spec.stem
    return SDK_NAMES[spec.modality] + ("" if spec.device == "cpu" else f"-{spec.device}")
