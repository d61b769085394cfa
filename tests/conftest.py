"""Fixtures of the fast tests: tiny checkpoints in the hub's layouts, and encoders exported from them."""

from __future__ import annotations

import os

# Before transformers is imported: no test asks the hub for anything, and none draws progress bars.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import SUFFIXES, Format, Modality, Precision, encoder_stem
from export_scripts.checkpoints.loading import load_pair
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.publish import export_encoder
from standins import checkpoints

CPU = torch.device("cpu")

ExportedAs = Callable[[str, Format, Precision], Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server", choices=("torchserve", "ray"), default="torchserve", help="which one tests/http asks"
    )


def pytest_configure(config: pytest.Config) -> None:
    # The models are tiny: more threads cost more than they bring.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="this PyTorch sees no CUDA device"))


@pytest.fixture(autouse=True)
def _same_threads_after_each_test() -> Iterator[None]:
    """A worker sets the process's threads; the next test should not inherit them."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sentence-transformers' CLIP layout: 48 x 48 pixels, 32-d, 77 tokens of byte-level BPE."""
    return checkpoints.write_clip(tmp_path_factory.mktemp("checkpoints") / "clip")


@pytest.fixture(scope="session")
def multilingual_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sentence-transformers' text layout: DistilBERT, `tokenizer.json` of WordPiece, 128 tokens."""
    return checkpoints.write_multilingual(tmp_path_factory.mktemp("checkpoints") / "multilingual")


@pytest.fixture(scope="session")
def m_clip_bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """M-CLIP's BERT layout: `vocab.txt` of WordPiece only, the head in a pickle."""
    return checkpoints.write_m_clip_bert(tmp_path_factory.mktemp("checkpoints") / "m-clip-bert")


@pytest.fixture(scope="session")
def m_clip_xlm_roberta_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """M-CLIP's XLM-R layout: Unigram."""
    return checkpoints.write_m_clip_xlm_roberta(tmp_path_factory.mktemp("checkpoints") / "m-clip-xlm-r")


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SigLIP as transformers saves it: 56 x 56 pixels, 64-d, 64 tokens of SentencePiece."""
    return checkpoints.write_siglip(tmp_path_factory.mktemp("checkpoints") / "siglip")


@pytest.fixture(scope="session")
def siglip_2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SigLIP 2 of a fixed resolution: as SigLIP, with a BPE as Gemma's, and bilinear resizing."""
    folder = tmp_path_factory.mktemp("checkpoints") / "siglip-2"
    return checkpoints.write_siglip(folder, checkpoints.SIGLIP_2)


@pytest.fixture(scope="session")
def pair(clip_folder: Path, multilingual_folder: Path) -> CheckpointPair:
    """The pair that most tests serve: CLIP's image encoder with the multilingual text encoder."""
    return load_pair(str(clip_folder), str(multilingual_folder))


@pytest.fixture(scope="session")
def store(pair: CheckpointPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both encoders of `pair` exported in fp32; to be read, never written."""
    folder = tmp_path_factory.mktemp("store")
    export_encoder(pair, "image", "cpu", "fp32", folder)
    export_encoder(pair, "text", "cpu", "fp32", folder)
    return folder


@pytest.fixture(scope="session")
def exported_as(
    clip_folder: Path,
    multilingual_folder: Path,
    m_clip_xlm_roberta_folder: Path,
    siglip_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> ExportedAs:
    """Exports an encoder of a layout in a format, each once: compiling takes a while. To be read only.

    Once for all processes of a parallel run, whose folders lie side by side.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "formats"
    folder.mkdir(exist_ok=True)
    encoders: dict[str, tuple[Modality, Path, Path]] = {
        "image": ("image", clip_folder, multilingual_folder),
        "multilingual": ("text", clip_folder, multilingual_folder),
        "clip": ("text", clip_folder, clip_folder),
        "m-clip-xlm-r": ("text", clip_folder, m_clip_xlm_roberta_folder),
        "siglip-image": ("image", siglip_folder, siglip_folder),
        "siglip": ("text", siglip_folder, siglip_folder),
    }

    def export(name: str, format: Format, precision: Precision) -> Path:
        modality, image, text = encoders[name]
        stem = encoder_stem(image.name, modality, "cpu", precision)
        path = folder / name / f"{stem}{SUFFIXES[format]}"
        with FileLock(folder / f"{name}-{path.name}.lock"):
            if not path.is_file():
                pair = load_pair(str(image), str(text))
                spec = export_encoder(pair, modality, "cpu", precision, path.parent, file_format=format)
                assert spec.file_name == path.name
        return path

    return export


@pytest.fixture(scope="session")
def image_path(store: Path) -> Path:
    return store / "clip-image-cpu-fp32.pt"


@pytest.fixture(scope="session")
def text_path(store: Path) -> Path:
    return store / "clip-text-cpu-fp32.pt"


@pytest.fixture(scope="session")
def image_encoder(image_path: Path) -> ExportedImageEncoder:
    return ExportedImageEncoder(image_path, CPU)


@pytest.fixture(scope="session")
def text_encoder(text_path: Path) -> ExportedTextEncoder:
    return ExportedTextEncoder(text_path, CPU)
