"""open_clip's folders in the sizes of the published models, exported and proven as `make export` does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clipserve.encoder_spec import Modality
from export_scripts.checkpoints.loading import load_pair
from export_scripts.publish import export_encoder
from standins.open_clip import FULL_SIZE, write_open_clip

pytestmark = pytest.mark.full


@pytest.mark.parametrize("name", sorted(FULL_SIZE))
def test_both_sides_within_the_bound(name: str, tmp_path: Path) -> None:
    kind = FULL_SIZE[name]
    pair = load_pair(str(write_open_clip(tmp_path / name, kind)))
    sides: tuple[Modality, Modality] = ("image", "text")
    for modality in sides:
        spec = export_encoder(pair, modality, "cpu", "fp32", tmp_path / "store")
        assert spec.certificate.holds
        assert spec.embedding_dim == kind.model["embed_dim"]
    # Gigabytes, of which the next one needs the room.
    shutil.rmtree(tmp_path)
