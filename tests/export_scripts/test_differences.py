"""docs/parity.md's table of what a vector here differs by from other code for the same checkpoint, by row."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import ExifTags, Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, SiglipModel
from transformers.image_utils import load_image

from clipserve.images import ImageLimits, decode_image, preprocess
from clipserve.preprocessing import ImagePreprocessing
from clipserve.similarity import cosine
from clipserve.tokens import Tokenizer
from export_scripts.checkpoints.loading import load_text_checkpoint
from export_scripts.parity.inputs import photograph_like, picture_files
from tests.export_scripts.exports import Pairs

ROOT = Path(__file__).parents[2]

EDGE = 48
PREPROCESSING = ImagePreprocessing(EDGE, EDGE, EDGE, "bicubic", (0.0,) * 3, (1.0,) * 3)

Pixels = npt.NDArray[np.uint8]


def ours(data: bytes) -> Pixels:
    return preprocess(decode_image(data, ImageLimits()), PREPROCESSING, ImageLimits())


def transformers_5(image: Image.Image) -> Pixels:
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": EDGE},
        crop_size={"height": EDGE, "width": EDGE},
        do_rescale=False,
        do_normalize=False,
    )
    pixels: Pixels = np.asarray(processor(image)["pixel_values"][0]).astype(np.uint8)
    return pixels


FILES = {file.name: file for file in picture_files(21, EDGE, 0)}


@pytest.mark.parametrize("name", FILES)
def test_transformers_5_makes_the_same_pixels(name: str, tmp_path: Path) -> None:
    """With its own `load_image`, which turns by EXIF as we do."""
    path = tmp_path / "picture"
    path.write_bytes(FILES[name].data)
    np.testing.assert_array_equal(ours(FILES[name].data), transformers_5(FILES[name].original))
    if "transparency" not in name:
        np.testing.assert_array_equal(ours(FILES[name].data), transformers_5(load_image(str(path))))


def test_transparency_dropped_is_another_picture() -> None:
    """transformers 4 and OpenAI's code: `convert("RGB")` shows the colour under what is transparent."""
    logo = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    logo.paste((255, 0, 0, 255), (20, 20, 40, 40))
    buffer = io.BytesIO()
    logo.save(buffer, "PNG")
    assert ours(buffer.getvalue())[:, 0, 0].tolist() == [255, 255, 255]
    assert transformers_5(logo)[:, 0, 0].tolist() == [255, 255, 255]
    assert transformers_5(logo.convert("RGB"))[:, 0, 0].tolist() == [0, 0, 0]


def test_exif_not_obeyed_is_another_picture() -> None:
    """OpenAI's code, and any library that is handed an opened picture."""
    file = FILES["JPEG turned by EXIF"]
    lying = Image.open(io.BytesIO(file.data))
    assert lying.getexif()[ExifTags.Base.Orientation] == 6
    assert (ours(file.data) != transformers_5(lying)).any()


@pytest.mark.parametrize(
    ("width", "by"), [(EDGE + 2, 0), (EDGE + 3, 1), (EDGE + 4, 0), (EDGE + 5, 0), (EDGE + 7, 1)]
)
def test_crop_is_rounded_down(width: int, by: int) -> None:
    """OpenAI's code crops with torchvision, at `round(rest / 2)`: a pixel further at a rest of 3, 7, 11 …"""
    data = io.BytesIO()
    image = photograph_like(np.random.default_rng(1), width, EDGE)
    image.save(data, "PNG")
    left = round((width - EDGE) / 2) - by
    expected = np.asarray(image).transpose(2, 0, 1)[:, :, left : left + EDGE]
    np.testing.assert_array_equal(ours(data.getvalue()), expected)
    np.testing.assert_array_equal(transformers_5(image), expected)


@pytest.mark.parametrize("text", ["a cat &amp; a dog", "a cat &amp;amp; a dog", "sch\u00c3\u00b6n"])
def test_text_is_not_repaired(text: str, clip_folder: Path) -> None:
    """OpenAI's code unescapes HTML and mends mojibake with ftfy; transformers 5 does neither, and so here."""
    checkpoint = load_text_checkpoint(clip_folder, "clip")
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.preprocessing)
    repaired = html.unescape(html.unescape(text)).replace("\u00c3\u00b6", "\u00f6")
    assert repaired != text
    assert tokenizer.tokenize(text).ids != tokenizer.tokenize(repaired).ids
    np.testing.assert_array_equal(
        checkpoint.reference_encode([text]),
        checkpoint.reference(*map(torch.from_numpy, tokenizer.pad([tokenizer.tokenize(text).ids]))),
    )


@pytest.mark.parametrize(
    ("one", "other"), [("A  Cat\t on a\nTABLE ", "a cat on a table"), ("e\u0301te\u0301", "\u00e9t\u00e9")]
)
def test_text_cleaning_that_all_have(one: str, other: str, clip_folder: Path) -> None:
    """Lower case, one space between words, NFC: in CLIP's tokenizer, whoever runs it."""
    checkpoint = load_text_checkpoint(clip_folder, "clip")
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.preprocessing)
    assert tokenizer.tokenize(one).ids == tokenizer.tokenize(other).ids


def cosine_of(kind: str, pairs: Pairs, folder: Path, text: str, prepared: str, length: int) -> float:
    """Of a SigLIP's vector of a text, with that of the same text as other code prepares it."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    # What transformers' own does to a SigLIP's text cannot be left out but by SentencePiece alone.
    ids = tokenizer(prepared, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    with torch.inference_mode():
        model = SiglipModel.from_pretrained(folder).eval()
        other = model.get_text_features(input_ids=ids["input_ids"]).pooler_output.numpy()
    ours = pairs[kind].text.reference_encode([text])
    return cosine(ours[0], other[0])


def ascii_lower(text: str) -> str:
    return "".join(letter.lower() if letter.isascii() else letter for letter in text)


@pytest.mark.parametrize(
    ("kind", "text", "prepare", "length", "row"),
    [
        ("siglip", "two dogs", str, 8, "padded to the longest"),
        ("siglip-2", "two dogs", str.lower, 8, "padded to the longest"),
        ("siglip-2", "Two Dogs", str, 64, "capitals kept"),
        ("siglip-2", "two dogs, a cat.", lambda text: re.sub("[,.]", "", text), 64, "punctuation taken out"),
        ("siglip-2", "Кот на Столе", ascii_lower, 64, "capitals of other scripts"),
        ("siglip-2", "ΣΚΎΛΟΣ", lambda text: text.lower().replace("ς", "σ"), 64, "a final sigma"),
    ],
)
def test_siglip_prepared_otherwise(
    kind: str,
    text: str,
    prepare: Callable[[str], str],
    length: int,
    row: str,
    pairs: Pairs,
    siglip_folder: Path,
    siglip_2_folder: Path,
) -> None:
    """docs/parity.md's second table, whose numbers are of these stand-ins."""
    folder = siglip_folder if kind == "siglip" else siglip_2_folder
    found = cosine_of(kind, pairs, folder, text, prepare(text), length)
    page = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {row}")]
    said = line.split("|")[3 if kind == "siglip" else 4]
    assert found == pytest.approx(float(said), abs=0.02)
    # The same code prepares it as we do, where it is told to.
    assert cosine_of(kind, pairs, folder, text, text.lower(), 64) == pytest.approx(1, abs=1e-5)
