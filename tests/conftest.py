"""Fixtures of the fast tests: tiny checkpoints in the hub's layouts, and encoders exported from them."""

from __future__ import annotations

import logging
import os

# Before transformers is imported: no test asks the hub for anything, and none draws progress bars.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from xdist.scheduler import LoadFileScheduling

from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import SUFFIXES, Format, Modality, Precision, encoder_stem
from export_scripts.checkpoints.loading import load_pair
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.publish import export_encoder
from standins import tiny

CPU = torch.device("cpu")

TESTS = Path(__file__).parent

ExportedAs = Callable[[str, Format, Precision], Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server", choices=("torchserve", "ray"), default="torchserve", help="which one tests/http asks"
    )
    parser.addoption(
        "--cases", type=int, default=100, help="of schemathesis at least, in tests/http/test_openapi.py"
    )


class SideBySide(LoadFileScheduling):
    """Files side by side, but those of tests/http one after the other: a server is started once for them."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "tests/http" if file.startswith("tests/http/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SideBySide:
    return SideBySide(config, log)


def pytest_configure(config: pytest.Config) -> None:
    # The models are tiny: more threads cost more than they bring.
    torch.set_num_threads(1)


# The rooms that take minutes, the longest first.
LONGEST = ("http", "export_scripts")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # They come first: at the end, one process would have one of them to itself.
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.relative_to(TESTS).parts[0], len(order)))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="this PyTorch sees no CUDA device"))


@pytest.fixture(autouse=True)
def _same_process_after_each_test() -> Iterator[None]:
    """A worker sets the process's threads, a command what is logged; the next test inherits neither."""
    logger = logging.getLogger("clipserve")
    level = logger.level
    yield
    torch.set_num_threads(1)
    logger.setLevel(level)


WrittenOnce = Callable[[str, Callable[[Path], Path]], Path]

FolderOf = Callable[[str], Path]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of a parallel run, whose own folders lie side by side."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def written_once(shared_folder: Path) -> WrittenOnce:
    """Writes a checkpoint once for all processes; to be read, never written.

    Training a small tokenizer breaks ties by the process's hash seed, so that two of them differ: what one
    process exports, another could not compare with a checkpoint of its own.
    """

    def written(name: str, write: Callable[[Path], Path]) -> Path:
        with FileLock(shared_folder / f"{name}.lock"):
            folder = shared_folder / "checkpoints" / name
            if not folder.is_dir():
                partial = write(shared_folder / "partial" / name)
                folder.parent.mkdir(exist_ok=True)
                partial.rename(folder)
        return folder

    return written


FolderOf = Callable[[str], Path]


@pytest.fixture(scope="session")
def folder_of(written_once: WrittenOnce) -> FolderOf:
    """The tiny checkpoint of a name in `standins.tiny`; to be read, never written."""
    return lambda name: written_once(name, tiny.ALL[name])


@pytest.fixture(scope="session")
def clip_folder(folder_of: FolderOf) -> Path:
    """sentence-transformers' CLIP layout: 48 x 48 pixels, 32-d, 77 tokens of byte-level BPE."""
    return folder_of("clip")


@pytest.fixture(scope="session")
def multilingual_folder(folder_of: FolderOf) -> Path:
    """sentence-transformers' text layout: DistilBERT, `tokenizer.json` of WordPiece, 128 tokens."""
    return folder_of("multilingual")


@pytest.fixture(scope="session")
def m_clip_bert_folder(folder_of: FolderOf) -> Path:
    """M-CLIP's BERT layout: `vocab.txt` of WordPiece only, the head in a pickle."""
    return folder_of("m-clip-bert")


@pytest.fixture(scope="session")
def m_clip_xlm_roberta_folder(folder_of: FolderOf) -> Path:
    """M-CLIP's XLM-R layout: Unigram."""
    return folder_of("m-clip-xlm-r")


@pytest.fixture(scope="session")
def siglip_folder(folder_of: FolderOf) -> Path:
    """SigLIP as transformers saves it: 56 x 56 pixels, 64-d, 64 tokens of SentencePiece."""
    return folder_of("siglip")


@pytest.fixture(scope="session")
def siglip_2_folder(folder_of: FolderOf) -> Path:
    """SigLIP 2 of a fixed resolution: as SigLIP, with a BPE as Gemma's, and bilinear resizing."""
    return folder_of("siglip-2")


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
def exported_as(folder_of: FolderOf, shared_folder: Path) -> ExportedAs:
    """Exports an encoder in a format, once for all processes: compiling takes a while.

    Named by its layout, such as `clip`, and with `-image` behind it where it is not the text encoder; `image`
    alone is that of `pair`.
    To be read only.
    """
    folder = shared_folder / "formats"
    folder.mkdir(exist_ok=True)

    def export(name: str, format: Format, precision: Precision) -> Path:
        modality: Modality = "image" if name.endswith("image") else "text"
        layout = name.removesuffix("image").rstrip("-") or "multilingual"
        image, text = folder_of(layout if layout in tiny.PAIRS else "clip"), folder_of(layout)
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
