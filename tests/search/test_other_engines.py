"""What OpenSearch finds with what is written for it is what `make search` finds."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from clipserve.encoder_spec import FloatArray
from clipserve.similarity import unit_vectors
from demo.captions import load_vocabularies
from pictures.table import open_table
from search.bulk_lines import write_bulk_lines
from search.demo import QUERIES, draw_pictures
from search.finder import Finder
from search.indexer import index_folder
from serving.local import ROOT
from serving.running import TORCHSERVE_PYTHON, running_torchserve
from tests.search.test_bulk_lines import documents

STORE = ROOT / "model_store" / "demo"

# One of every scene.
PICTURES = 392
LIMIT = 20


def as_opensearch(texts: list[str], work: Path, space_id: str) -> FloatArray:
    """The vectors of texts that OpenSearch gets from the demo's file, unit length; it tells its space."""
    export = ["-m", "export_scripts", "export", "--model", "demo"]
    export += ["--format", "opensearch", "--store", str(work / "store")]
    subprocess.run([TORCHSERVE_PYTHON, *export], cwd=ROOT, check=True)
    [archive] = (work / "store" / "opensearch").glob("*.zip")
    config = json.loads(archive.with_suffix(".config.json").read_text(encoding="utf-8"))
    assert space_id in config["description"]
    (work / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    embed = ["tests/upload/as_engines.py", "opensearch", archive, work / "texts.json", work / "vectors.npy"]
    subprocess.run([TORCHSERVE_PYTHON, *embed], cwd=ROOT, check=True)
    return unit_vectors(np.load(work / "vectors.npy"))


@pytest.mark.server
@pytest.mark.skipif(not STORE.is_dir(), reason="no model_store/demo; run 'make test-search'")
def test_the_demo_is_ranked_alike(tmp_path: Path) -> None:
    """In ten languages, by brute force over the lines: the same pictures in the same order."""
    draw_pictures(tmp_path / "pictures", PICTURES)
    vocabularies = load_vocabularies()
    captions = [vocabularies[code].captions(scene)[0] for code, scene in QUERIES]
    with running_torchserve(STORE) as server, server.client() as client:
        index_folder(client, tmp_path / "pictures", tmp_path / "table")
        table = open_table(tmp_path / "table")
        ours = Finder(client, table, LIMIT).by_texts(captions)
    assert write_bulk_lines(table, "opensearch", tmp_path / "lines") == (PICTURES, 1)
    found = [document for _, document in documents(tmp_path / "lines")]
    pictures = unit_vectors(np.array([document["embedding"] for document in found], np.float32))
    body = json.loads((tmp_path / "lines" / "mapping.json").read_text(encoding="utf-8"))
    texts = as_opensearch(captions, tmp_path, body["mappings"]["_meta"]["space_id"])
    for text, result in zip(texts, ours, strict=True):
        scores = pictures @ text
        nearest = np.argsort(-scores)[:LIMIT]
        np.testing.assert_allclose(scores[nearest], [hit.score for hit in result.hits], atol=2e-6)
        assert [found[row]["path"] for row in nearest] == [hit.path for hit in result.hits]
    # What was asked for is first as a rule: rankings of noise would be equal as well.
    firsts = [Path(result.hits[0].path).stem.rpartition("-")[0] for result in ours]
    assert sum(first == scene.name for first, (_, scene) in zip(firsts, QUERIES, strict=True)) >= 5
