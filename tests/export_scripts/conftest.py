"""Fixtures of the exports' tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clipserve.encoder_spec import Modality, Precision, encoder_stem
from export_scripts.checkpoints.loading import load_pair
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.export import export_pair
from export_scripts.publish import export_encoder
from standins import tiny
from standins.checkpoints import TINY_CLIP, write_clip, write_multilingual
from tests.conftest import FolderOf
from tests.export_scripts.exports import Exported, Pairs


@pytest.fixture(scope="session")
def pairs(folder_of: FolderOf) -> Pairs:
    """A pair of each layout; those of a text encoder only have CLIP's pictures."""

    class Loaded(dict[str, CheckpointPair]):
        def __missing__(self, layout: str) -> CheckpointPair:
            image, text = folder_of(layout if layout in tiny.PAIRS else "clip"), folder_of(layout)
            self[layout] = load_pair(str(image), str(text))
            return self[layout]

    return Loaded()


@pytest.fixture(scope="session")
def exported(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exports an encoder, each one once; to be read, never written."""
    folder = tmp_path_factory.mktemp("exported")

    def export(layout: str, modality: Modality, precision: Precision) -> Path:
        pair = pairs[layout]
        path = folder / layout / f"{encoder_stem(pair.model_id, modality, 'cpu', precision)}.pt"
        if not path.is_file():
            spec = export_encoder(pair, modality, "cpu", precision, folder / layout)
            assert spec.file_name == path.name
        return path

    return export


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pair (`clip`, `multilingual`) and its export (`store`)."""
    root = tmp_path_factory.mktemp("made")
    write_clip(root / "clip", TINY_CLIP)
    write_multilingual(root / "multilingual")
    export_pair(str(root / "clip"), str(root / "multilingual"), "cpu", "fp32", root / "store")
    return root


@pytest.fixture
def own_store(made: Path, tmp_path: Path) -> Path:
    """A copy of the store in `made`, to be changed."""
    return Path(shutil.copytree(made / "store", tmp_path / "store"))
