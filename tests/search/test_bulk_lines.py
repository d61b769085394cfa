"""The table as lines for `_bulk`: what is in them, how they are cut, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipserve.encoder_spec import FloatArray
from pictures.rows import FileState, Row
from pictures.table import PictureTable, open_or_create_table, open_table
from search import bulk_lines
from search.__main__ import main
from search.bulk_lines import ENGINES, write_bulk_lines
from search.errors import SearchError
from tests.pictures.test_table import DIM, embeddings, old_table, rows

AWKWARD = ["/a/雪 \"két\" \\\\ 'kutya'.jpg", "/a/line\nend\x1b.jpg", "/a/\\xff.jpg", "/" + 4000 * "é"]


@pytest.fixture
def table(tmp_path: Path) -> PictureTable:
    return open_or_create_table(tmp_path / "table", "space", "clip-ViT-B-32", DIM)


def documents(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Id and document of every pair of lines, as a server reads them."""
    found = []
    for path in sorted(folder.glob("*.ndjson")):
        body = path.read_bytes()
        assert body.endswith(b"\n")
        lines = body.decode("utf-8").removesuffix("\n").split("\n")
        for action, source in zip(lines[::2], lines[1::2], strict=True):
            [(verb, of)] = json.loads(action).items()
            assert verb == "index"
            found.append((of["_id"], json.loads(source)))
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_every_row_is_a_document(table: PictureTable, engine: str, tmp_path: Path) -> None:
    stored = [replace(row, path=path) for row, path in zip(rows(embeddings(4)), AWKWARD, strict=True)]
    stored[1] = replace(stored[1], state=FileState(7, -1_500_000, "f" * 64, 0))
    stored[2] = replace(stored[2], state=FileState(2**40, 1_764_216_153_123_456_789, "e" * 64, 0))
    table.write(stored, [])
    assert write_bulk_lines(table, engine, tmp_path / "lines") == (4, 1)
    found = documents(tmp_path / "lines")
    assert [document["path"] for _, document in found] == AWKWARD
    assert [name for name, _ in found] == [hashlib.sha256(path.encode()).hexdigest() for path in AWKWARD]
    assert [(document["size"], document["modified"], document["sha256"]) for _, document in found[1:3]] == [
        (7, "1969-12-31T23:59:59.998+00:00", "f" * 64),
        (2**40, "2025-11-27T04:02:33.123+00:00", "e" * 64),
    ]
    body = json.loads((tmp_path / "lines" / "mapping.json").read_text())
    fields = body["mappings"]["properties"]
    assert all(document.keys() == fields.keys() for _, document in found)
    assert {document["space_id"] for _, document in found} == {fields["space_id"]["value"]} == {"space"}
    assert body["mappings"]["_meta"] == {"space_id": "space", "model_id": "clip-ViT-B-32", "dims": DIM}


def test_mappings(table: PictureTable) -> None:
    """As the engines' documentation has them; another similarity would rank otherwise, without an error."""
    vector = {engine: bulk_lines.index_body(table, engine) for engine in ENGINES}
    assert vector["elasticsearch"]["mappings"]["properties"]["embedding"] == {
        "type": "dense_vector",
        "dims": DIM,
        "index": True,
        "similarity": "cosine",
        "index_options": {"type": "int8_hnsw"},
    }
    assert vector["opensearch"]["settings"] == {"index": {"knn": True}}
    assert vector["opensearch"]["mappings"]["properties"]["embedding"] == {
        "type": "knn_vector",
        "dimension": DIM,
        "method": {"name": "hnsw", "engine": "lucene", "space_type": "cosinesimil"},
    }


def every_kind_of_number() -> FloatArray:
    """Any bits that are a number: whole ones, -0, subnormal ones, the largest."""
    bits = np.random.default_rng(0).integers(0, 2**32, 5000 * DIM, np.uint32)
    numbers = bits.view(np.float32)
    numbers = np.append(
        numbers[np.isfinite(numbers)], np.float32([0.0, -0.0, 1.0, -1.0, 1e-45, 3.4028235e38])
    )
    return np.resize(numbers, (5000, DIM)).astype(np.float32)


def test_embeddings_read_back_to_the_bit(table: PictureTable, tmp_path: Path) -> None:
    stored = every_kind_of_number()
    table.write(rows(stored), [])
    write_bulk_lines(table, "opensearch", tmp_path / "lines")
    read = np.array([document["embedding"] for _, document in documents(tmp_path / "lines")], np.float64)
    np.testing.assert_array_equal(read.astype(np.float32).view(np.uint32), stored.view(np.uint32))
    # As short as can be: not the nine digits that always suffice.
    text = (tmp_path / "lines" / "00001.ndjson").read_text(encoding="utf-8")
    assert "[" in text
    assert ",1," in text


def test_requests_are_small_enough(
    table: PictureTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.write(rows(embeddings(300)), [])
    write_bulk_lines(table, "opensearch", tmp_path / "whole")
    sizes = [len(request) for request in bulk_lines._documents(table)]
    monkeypatch.setattr(bulk_lines, "MAX_BYTES", 10 * max(sizes))
    count, requests = write_bulk_lines(table, "opensearch", tmp_path / "cut")
    assert (count, requests) == (300, len(list((tmp_path / "cut").glob("*.ndjson"))))
    assert 30 <= requests <= 35
    assert max(path.stat().st_size for path in (tmp_path / "cut").glob("*.ndjson")) <= 10 * max(sizes)
    assert documents(tmp_path / "cut") == documents(tmp_path / "whole")
    # A document that is larger than a request may be goes alone: the engine is asked.
    monkeypatch.setattr(bulk_lines, "MAX_BYTES", 10)
    assert write_bulk_lines(table, "opensearch", tmp_path / "cut") == (300, 300)


def test_a_large_table_is_never_in_memory(
    table: PictureTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are on the disk before the next rows are read."""
    table.write(rows(embeddings(400)), [])
    monkeypatch.setattr(bulk_lines, "ROWS", 20)
    monkeypatch.setattr(bulk_lines, "MAX_BYTES", 10_000)
    batches = table.batches
    on_disk: list[int] = []

    def watched(columns: Sequence[str], count: int | None = None) -> Iterator[pa.RecordBatch]:
        for batch in batches(columns, count):
            assert len(batch) <= 20
            on_disk.append(sum(path.stat().st_size for path in tmp_path.rglob("*.ndjson")))
            yield batch

    monkeypatch.setattr(table, "batches", watched)
    write_bulk_lines(table, "opensearch", tmp_path / "lines")
    assert len(on_disk) == 20
    total = sum(path.stat().st_size for path in (tmp_path / "lines").glob("*.ndjson"))
    assert all(written >= total * done / 20 - 10_000 - total / 20 for done, written in enumerate(on_disk))


def test_loading_again_replaces(table: PictureTable, tmp_path: Path) -> None:
    """Ids are of the path: a changed file keeps its own, and what was taken out is written no more."""
    table.write(rows(embeddings(6)), [])
    write_bulk_lines(table, "opensearch", tmp_path / "lines")
    before = dict(documents(tmp_path / "lines"))
    table.remove(["/p/000000.jpg"])
    table.write([], rows(embeddings(1, seed=9), first=3))
    assert write_bulk_lines(table, "opensearch", tmp_path / "lines") == (5, 1)
    after = dict(documents(tmp_path / "lines"))
    changed = hashlib.sha256(b"/p/000003.jpg").hexdigest()
    assert after.keys() < before.keys()
    assert [name for name in after if after[name] != before[name]] == [changed]
    assert [path.name for path in tmp_path.iterdir() if path.name != "table"] == ["lines"]


def test_a_table_of_an_older_version(tmp_path: Path) -> None:
    stored = old_table(tmp_path / "table")
    assert write_bulk_lines(open_table(tmp_path / "table"), "elasticsearch", tmp_path / "lines") == (5, 1)
    assert [document["path"] for _, document in documents(tmp_path / "lines")] == [row.path for row in stored]


def bad(embedding: Sequence[float]) -> FloatArray:
    stored = embeddings(3)
    stored[1, : len(embedding)] = embedding
    return stored


@pytest.mark.parametrize("stored", [bad([np.inf]), bad([0.0] * DIM)], ids=["infinite", "zero"])
def test_what_no_engine_takes(table: PictureTable, stored: FloatArray, tmp_path: Path) -> None:
    """LanceDB itself keeps NaN out."""
    table.write(rows(stored), [])
    with pytest.raises(
        SearchError, match=r"the embedding of /p/000001\.jpg is all zeros or not finite; take it"
    ):
        write_bulk_lines(table, "opensearch", tmp_path / "lines")
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_a_row_of_another_space(table: PictureTable, tmp_path: Path) -> None:
    """No version wrote one; a document of another space among others would never be noticed again."""
    table.write(rows(embeddings(3)), [])
    table._table.update(where="path = '/p/000002.jpg'", values={"space_id": "another"})
    with pytest.raises(SearchError, match=r"the embedding of /p/0+2\.jpg is of another space than the table"):
        write_bulk_lines(table, "opensearch", tmp_path / "lines")
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_an_interrupted_run_leaves_what_was_there(
    table: PictureTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.write(rows(embeddings(3)), [])
    write_bulk_lines(table, "opensearch", tmp_path / "lines")
    before = documents(tmp_path / "lines")

    def interrupted(*_: Any) -> Iterator[pa.RecordBatch]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(table, "batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bulk_lines(table, "opensearch", tmp_path / "lines")
    assert documents(tmp_path / "lines") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines", "table"]


def test_a_folder_of_something_else_is_not_replaced(table: PictureTable, tmp_path: Path) -> None:
    table.write(rows(embeddings(3)), [])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").touch()
    (tmp_path / "file").touch()
    for name, held in (("photos", r"mine\.jpg"), ("file", "it is a file")):
        with pytest.raises(SearchError, match=rf"{held}\); name another folder: make bulk-lines OUTPUT="):
            write_bulk_lines(table, "opensearch", tmp_path / name)
    assert (tmp_path / "photos" / "mine.jpg").exists()
    assert (tmp_path / "file").exists()


def test_on_the_command_line(
    table: PictureTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["bulk-lines", "--table", "table", "--for", "opensearch"]
    assert main(words) == 1
    assert capsys.readouterr().err == (
        "search: table: the table is empty; index some: make index IMAGES=folder\n"
    )
    assert not (tmp_path / ".search" / "opensearch").exists()
    table.write([*rows(embeddings(3)), Row("/p/x.jpg", FileState(1, 1, "", 1), embeddings(1)[0], b"")], [])
    assert main(words) == 0
    assert capsys.readouterr().out == (
        "4 pictures in 1 requests for opensearch, and their mapping: .search/opensearch\n"
    )
    assert len(documents(tmp_path / ".search" / "opensearch")) == 4
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--for", "solr"])
    assert stopped.value.code == 2
    assert "'solr'" in capsys.readouterr().err
