"""What is exported for OpenSearch and Elasticsearch, sent by their own clients to a server that keeps it.

The lines are those of docs/opensearch.md and docs/elasticsearch.md: `make test-upload`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export_scripts.export import main as export
from standins.checkpoints import TINY_TEXT, write_multilingual
from tests.upload.stand_in import Engine, running_engine

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PYTHON = ROOT / ".venv-upload" / "bin" / "python"
# Where eland has its exporter, and PyTorch.
WHOLE = ROOT / ".venv-exporters" / "bin" / "python"
ADDRESS = "http://localhost:9200"

pytestmark = [
    pytest.mark.skipif(not PYTHON.is_file(), reason="no .venv-upload; run 'make test-upload'"),
    # As tests/export_scripts/test_publish.py has it: torch's own filter for warnings about its own code.
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn.functional"),
]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with running_engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def exported(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one text encoder for both: 13 MB, so that each client sends several pieces."""
    store = tmp_path_factory.mktemp("exported")
    checkpoint = write_multilingual(store / "checkpoint", replace(TINY_TEXT, width=320))
    for name in ("opensearch", "elasticsearch"):
        words = ["--model", str(clip_folder), "--text-model", str(checkpoint)]
        assert export([*words, "--format", name, "--store", str(store)]) == 0
    return store


def run(script: str, *words: object, python: Path = PYTHON) -> str:
    """What a script of this folder prints in the clients' environment."""
    command = [str(python), "-W", "ignore", str(HERE / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_lines(page: str, number: int, *replacements: object, python: Path = PYTHON) -> str:
    """What the lines of a page print; the clients' environment has no PyTorch."""
    return run("run_lines.py", ROOT / "docs" / page, number, *replacements, python=python)


def test_opensearch(engine: Engine, exported: Path) -> None:
    """Its client registers the zip, deploys it, and asks with it."""
    [archive] = (exported / "opensearch").glob("*.zip")
    stem = archive.with_suffix("")
    written = "model_store/opensearch/clip-ViT-B-32-text-cpu-fp32"
    printed = run_lines("opensearch.md", 0, ADDRESS, engine.url, written, stem)
    assert printed.splitlines()[-1] == "0.75 /p/dogs.jpg"

    [registration] = map(json.loads, engine.bodies("POST /_plugins/_ml/models/meta"))
    pieces = engine.bodies(r"POST /_plugins/_ml/models/registered/chunk/\d+")
    sent = b"".join(pieces)
    assert sent == archive.read_bytes()
    assert len(pieces) == registration.pop("total_chunks") == 2
    assert registration.pop("model_group_id") == ""
    assert registration == json.loads(stem.with_name(f"{stem.name}.config.json").read_text(encoding="utf-8"))
    # What the engine compares before it opens a model.
    assert registration["model_content_hash_value"] == hashlib.sha256(sent).hexdigest()
    assert registration["model_content_size_in_bytes"] == len(sent)
    order = [request.target for request in engine.received]
    assert order.index("POST /_plugins/_ml/models/registered/_deploy") > order.index(
        "POST /_plugins/_ml/models/registered/chunk/1"
    )
    [query] = map(json.loads, engine.bodies("POST /pictures/_search"))
    assert query["query"]["neural"]["embedding"]["model_id"] == "registered"


def parts(engine: Engine) -> tuple[list[dict[str, Any]], bytes]:
    """What Elasticsearch was sent of an encoder, in the order of its parts, and the whole."""
    found = {
        int(request.target.rpartition("/")[2]): json.loads(request.body)
        for request in engine.received
        if re.fullmatch(r"PUT /_ml/trained_models/clip-text/definition/\d+", request.target)
    }
    assert sorted(found) == list(range(len(found)))
    sent = [found[number] for number in range(len(found))]
    return sent, b"".join(base64.b64decode(part["definition"], validate=True) for part in sent)


@pytest.mark.parametrize(
    ("python", "number", "count"),
    [
        pytest.param(PYTHON, 0, 13, id="eland"),
        pytest.param(PYTHON, 1, 4, id="elasticsearch"),
        pytest.param(
            WHOLE, 0, 13, id="eland-with-its-exporter",
            marks=[
                pytest.mark.full,
                pytest.mark.skipif(not WHOLE.is_file(), reason="no .venv-exporters"),
            ],
        ),
    ],
)  # fmt: skip
def test_elasticsearch(engine: Engine, exported: Path, python: Path, number: int, count: int) -> None:
    """eland's uploader, and the client that it is made on."""
    [folder] = (exported / "elasticsearch").iterdir()
    written = "model_store/elasticsearch/clip-ViT-B-32-text-cpu-fp32"
    run_lines("elasticsearch.md", number, ADDRESS, engine.url, written, folder, python=python)

    [config] = map(json.loads, engine.bodies("PUT /_ml/trained_models/clip-text"))
    assert config == json.loads((folder / "config.json").read_text(encoding="utf-8"))
    [vocabulary] = map(json.loads, engine.bodies("PUT /_ml/trained_models/clip-text/vocabulary"))
    assert vocabulary == json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    sent, whole = parts(engine)
    assert whole == (folder / "traced_pytorch_model.pt").read_bytes()
    assert {part["total_definition_length"] for part in sent} == {len(whole)}
    assert {part["total_parts"] for part in sent} == {len(sent)} == {count}
    assert engine.received[-1].target == "POST /_ml/trained_models/clip-text/deployment/_start"


def test_elasticsearch_is_asked(engine: Engine) -> None:
    assert run_lines("elasticsearch.md", 2, ADDRESS, engine.url) == "0.75 /p/dogs.jpg\n"
    [query] = map(json.loads, engine.bodies("POST /pictures/_search"))
    assert query["knn"]["query_vector_builder"]["text_embedding"]["model_id"] == "clip-text"


def test_eland_knows_all_of_the_configuration(exported: Path) -> None:
    """Its own classes take it, and would send the same."""
    [folder] = (exported / "elasticsearch").iterdir()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert json.loads(run("eland_config.py", folder / "config.json")) == config


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl; apt-get install curl")
@pytest.mark.parametrize("name", ["opensearch", "elasticsearch"])
def test_documents_are_sent_by_curl(engine: Engine, name: str, tmp_path: Path) -> None:
    """As many requests as there are files, each as it is, after the index is there."""
    folder = tmp_path / ".search" / name
    folder.mkdir(parents=True)
    (folder / "mapping.json").write_text('{\n  "mappings": {}\n}\n')
    bodies = [
        b'{"index": {"_id": "1"}}\n{"path": "/\xc3\xa1 @"}\n',
        b'{"index": {"_id": "2"}}\n{"path": "/b"}\n',
    ]
    for number, body in enumerate(bodies, start=1):
        (folder / f"{number:05}.ndjson").write_bytes(body)
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(URL=.*?)^```$", page, re.MULTILINE | re.DOTALL)
    # OpenSearch is told to take models from files as well.
    assert len(blocks) == {"opensearch": 2, "elasticsearch": 1}[name]
    for lines in blocks:
        done = subprocess.run(
            ["bash", "-euc", lines.replace(ADDRESS, engine.url)],
            cwd=tmp_path,
            env={**os.environ, "no_proxy": "127.0.0.1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert engine.received[0].target == "PUT /pictures"
    assert engine.received[0].body == (folder / "mapping.json").read_bytes()
    assert engine.bodies("POST /pictures/_bulk") == bodies
    assert {request.content_type for request in engine.received} == {
        "application/json",
        "application/x-ndjson",
    }
    for settings in map(json.loads, engine.bodies("PUT /_cluster/settings")):
        assert settings["persistent"]["plugins.ml_commons.allow_registering_model_via_local_file"] is True
