import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from clipserve.encoder_spec import FloatArray
from pictures import ann
from pictures.errors import PicturesError
from pictures.paths import path_condition
from pictures.reader import Hit
from pictures.rows import ADDED, FOLDED_PATH, FileState, Row
from pictures.storage import sole_writer
from pictures.table import PictureTable, open_or_create_table, open_table
from search.journal import NAME as JOURNAL
from search.journal import Journal
from serving.local import ROOT

DIM = 32


def rows(embeddings: FloatArray, first: int = 0) -> list[Row]:
    return [
        Row(f"/p/{i:06d}.jpg", FileState(i, i, f"{i:064x}", i), embedding, bytes([i % 256]))
        for i, embedding in enumerate(embeddings, start=first)
    ]


def embeddings(count: int, seed: int = 0) -> FloatArray:
    # Not normalised: the table's cosine does not rest on that.
    return np.random.default_rng(seed).standard_normal((count, DIM), np.float32)


@pytest.fixture
def table(tmp_path: Path) -> PictureTable:
    return open_or_create_table(tmp_path / "table", "space", "model", DIM)


def test_ranking_is_that_of_numpy(table: PictureTable) -> None:
    stored, queries = embeddings(700), embeddings(20, seed=1)
    table.write(rows(stored), [])
    unit = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    for query in queries:
        cosines = unit @ (query / np.linalg.norm(query))
        order = np.argsort(-cosines)[:25]
        hits = table.nearest(query, 25)
        assert [hit.path for hit in hits] == [f"/p/{i:06d}.jpg" for i in order]
        np.testing.assert_allclose([hit.score for hit in hits], cosines[order], atol=1e-5)


def test_equal_scores_come_by_path(table: PictureTable) -> None:
    same = np.repeat(embeddings(1), 5, axis=0)
    table.write(rows(same)[::-1], [])
    assert [hit.path for hit in table.nearest(same[0], 5)] == [f"/p/{i:06d}.jpg" for i in range(5)]


def test_rows_are_replaced_and_removed(table: PictureTable) -> None:
    table.write(rows(embeddings(5)), [])
    table.write([], rows(embeddings(2, seed=9), first=3))
    table.remove(["/p/000000.jpg", "/p/'quoted'.jpg"])
    assert sorted(table.states()) == [f"/p/{i:06d}.jpg" for i in range(1, 5)]
    changed, _ = table.by_hash([f"{4:064x}"])[f"{4:064x}"]
    np.testing.assert_array_equal(changed, embeddings(2, seed=9)[1])


def test_what_another_process_writes_is_seen(table: PictureTable) -> None:
    reader = open_table(table.folder)
    table.write(rows(embeddings(3)), [])
    assert len(reader) == 3
    assert (reader.space_id, reader.model, reader.embedding_dim) == ("space", "model", DIM)


def test_index_is_built_when_large_enough_and_kept_fresh(
    table: PictureTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann, "ANN_ROWS", 3000)
    table.write(rows(embeddings(2000)), [])
    table.maintain()
    assert not table.has_index
    table.write(rows(embeddings(2000, seed=1), first=2000), [])
    table.maintain()
    assert table.has_index
    assert table.recall(embeddings(20, seed=2)) >= 0.95
    assert table.recall(table.sample(20)) >= 0.95
    fresh = embeddings(500, seed=3)
    table.write(rows(fresh, first=4000), [])
    # Found before the index knows of them, and after.
    assert table.nearest(fresh[7], 1)[0].path == "/p/004007.jpg"
    table.maintain()
    assert table.nearest(fresh[7], 1)[0].path == "/p/004007.jpg"
    near = table.nearest(fresh[7], 10, condition="path LIKE '%5.jpg'")
    assert len(near) == 10
    assert all(hit.path.endswith("5.jpg") for hit in near)


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(PicturesError, match="no pictures are indexed here; index some: make index"):
        open_table(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_table_is_a_sentence(table: PictureTable) -> None:
    table.write(rows(embeddings(3)), [])
    for manifest in (table.folder / "pictures.lance" / "_versions").iterdir():
        manifest.write_bytes(b"damaged")
    with pytest.raises(PicturesError, match="the table cannot be read"):
        open_table(table.folder)


def test_second_writer_waits(tmp_path: Path) -> None:
    waited = threading.Event()
    entered: list[str] = []

    def second() -> None:
        with sole_writer(tmp_path, waited.set):
            entered.append("second")

    with sole_writer(tmp_path, lambda: pytest.fail("nobody to wait for")):
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(60)
        entered.append("first")
    thread.join(60)
    assert entered == ["first", "second"]


def test_writer_that_is_killed_holds_nobody_up(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from pictures.storage import sole_writer\n"
        "with sole_writer(pathlib.Path(sys.argv[1]), print):\n    print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    with sole_writer(tmp_path, lambda: pytest.fail("the lock outlived its process")):
        pass


def test_journal(tmp_path: Path) -> None:
    [first, second] = embeddings(2)
    journal = Journal(tmp_path, "space")
    journal.put("a", first)
    journal.put("b", second)
    # Not closed, as after SIGKILL.
    again = Journal(tmp_path, "space")
    found = again.get("a")
    assert found is not None
    np.testing.assert_array_equal(found, first)
    again.forget(["a", "x"])
    assert again.get("a") is None
    assert again.get("b") is not None
    again.close()
    assert Journal(tmp_path, "another space").get("b") is None


def test_damaged_journal_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b"no database at all" * 100)
    journal = Journal(tmp_path, "space")
    journal.put("a", embeddings(1)[0])
    assert journal.get("a") is not None


def test_copies_are_one_hit(table: PictureTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES 41: a thousand copies of the nearest file take one place of the limit."""
    stored = embeddings(6)
    many = [replace(row, path=f"/copies/{i:04d}.jpg") for i in range(1000) for row in rows(stored[:1])]
    table.write([*rows(stored), *many], [])
    unit = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    order = np.argsort(-(unit @ unit[0]))
    asked: list[int] = []
    nearest = table.nearest

    def counting(embedding: FloatArray, limit: int, **more: Any) -> list[Hit]:
        asked.append(limit)
        return nearest(embedding, limit, **more)

    monkeypatch.setattr(table, "nearest", counting)
    hits = table.nearest_contents(stored[0], 4)
    # The first answer is all copies; the second, without them, is the rest.
    assert asked == [4, 8]
    assert [hit.sha256 for hit in hits] == [f"{i:064x}" for i in order[:4]]
    assert hits[0].path == "/copies/0000.jpg"
    assert table.thumbnails([hits[0].path, "/nowhere"]) == {hits[0].path: b"\x00"}
    assert hits[0].copies == (*(f"/copies/{i:04d}.jpg" for i in range(1, 1000)), "/p/000000.jpg")
    assert [hit.copies for hit in hits[1:]] == [(), (), ()]
    np.testing.assert_allclose([hit.score for hit in hits], (unit @ unit[0])[order[:4]], atol=1e-5)
    # Copies fulfil the condition as well.
    [first, *rest] = table.nearest_contents(stored[0], 10, condition="path LIKE '/p/%'")
    assert (first.path, first.copies, len(rest)) == ("/p/000000.jpg", (), 5)


def test_as_many_contents_as_there_are(table: PictureTable) -> None:
    table.write([replace(row, path=f"/{i}") for i in range(50) for row in rows(embeddings(1))], [])
    [hit] = table.nearest_contents(embeddings(1)[0], 3)
    assert (hit.path, len(hit.copies)) == ("/0", 49)
    assert table.nearest_contents(embeddings(1)[0], 3, condition="path = '/nowhere'") == []


def test_state_and_newest(table: PictureTable) -> None:
    table.write(rows(embeddings(3)), [])
    assert table.state("/p/000002.jpg") == FileState(2, 2, f"{2:064x}", 2)
    assert table.state("/p/' OR TRUE --") is None
    assert table.newest(2) == ["/p/000002.jpg", "/p/000001.jpg"]
    assert table.paths([f"{1:064x}", "0"]) == ("/p/000001.jpg",)


def test_a_sample_is_of_different_rows(table: PictureTable) -> None:
    assert table.sample(5).shape == (0, DIM)
    table.write(rows(embeddings(20)), [])
    assert len(np.unique(table.sample(12), axis=0)) == 12
    np.testing.assert_array_equal(np.unique(table.sample(100), axis=0), np.unique(embeddings(20), axis=0))


def test_forget_below(table: PictureTable) -> None:
    """CASES 50: exactly what lies in the folder, whatever SQL's wildcards would make of its name."""
    paths = ["/a_b/1.jpg", "/a_b/deep/2.jpg", "/a_bc/3.jpg", "/axb/4.jpg", "/A_B/5.jpg", "/a%'/6.jpg", "/a_b"]
    table.write([replace(row, path=path) for row, path in zip(rows(embeddings(7)), paths, strict=True)], [])
    assert table.forget_below("/nowhere") == 0
    assert table.forget_below("/a_b") == 3
    assert sorted(table.states()) == ["/A_B/5.jpg", "/a%'/6.jpg", "/a_bc/3.jpg", "/axb/4.jpg"]
    assert table.forget_below("/a%'/") == 1
    assert table.forget_below("/") == 3


def old_table(folder: Path) -> list[Row]:
    """A table as it was written before there was a column `folded_path`."""
    schema = pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("mtime_ns", pa.int64(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("space_id", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), DIM), nullable=False),
            pa.field("thumbnail", pa.binary(), nullable=False),
            pa.field("indexed_ns", pa.int64(), nullable=False),
        ],
        metadata={"space_id": "space", "model": "model"},
    )
    stored = [replace(row, path=f"/É{i}.jpg") for i, row in enumerate(rows(embeddings(5)))]
    columns = {
        "path": [row.path for row in stored],
        **{name: [getattr(row.state, name) for row in stored] for name in FileState._fields},
        "space_id": ["space"] * 5,
        "embedding": [row.embedding for row in stored],
        "thumbnail": [row.thumbnail for row in stored],
    }
    lancedb.connect(folder).create_table("pictures", pa.table(columns, schema=schema))
    return stored


def test_a_table_of_an_older_version_is_upgraded_by_its_next_writer(tmp_path: Path) -> None:
    """CASES 42: the column that a part of the path is looked for in is added, and nothing else changes."""
    stored = old_table(tmp_path)
    before = open_table(tmp_path)
    assert before.is_of_older_version
    assert (before.facts([row.path for row in stored]), before.cameras()) == ({}, [])
    states = before.states()
    assert [hit.path for hit in before.nearest_contents(stored[3].embedding, 1)] == ["/É3.jpg"]
    table = open_or_create_table(tmp_path, "space", "model", DIM)
    assert not table.is_of_older_version
    # Their files are to be looked at once more.
    assert table.without_facts() == {row.path for row in stored}
    assert (table.space_id, table.model, table.states()) == ("space", "model", states)
    known = table.by_hash(row.state.sha256 for row in stored)
    for row in stored:
        np.testing.assert_array_equal(known[row.state.sha256][0], row.embedding)
        assert known[row.state.sha256][1] == row.thumbnail
    table.write(rows(embeddings(1, seed=5), first=7), [])
    condition = path_condition("e\N{COMBINING ACUTE ACCENT}")
    assert len(table.nearest_contents(stored[0].embedding, 10, condition=condition)) == 5


def test_an_upgrade_keeps_what_searches_go_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES 42: the ANN index covers all rows afterwards; by path and contents there are indices as well."""
    monkeypatch.setattr(ann, "ANN_ROWS", 3000)
    table = open_or_create_table(tmp_path, "space", "model", DIM)
    table.write(rows(embeddings(4000)), [])
    table.maintain()
    lancedb.connect(tmp_path).open_table("pictures").drop_columns([field.name for field in ADDED])
    table = open_or_create_table(tmp_path, "space", "model", DIM)
    inner = lancedb.connect(tmp_path).open_table("pictures")
    for index in inner.list_indices():
        statistics = inner.index_stats(index.name)
        assert statistics is not None
        assert (index.name, statistics.num_unindexed_rows) == (index.name, 0)
    assert {column for index in inner.list_indices() for column in index.columns} == {
        *("embedding", "path", "sha256")
    }
    assert table.recall(embeddings(10, seed=2)) >= 0.95
    assert table.nearest_contents(embeddings(4000)[7], 1)[0].path == "/p/000007.jpg"


def test_an_upgrade_that_was_interrupted_is_finished(tmp_path: Path) -> None:
    old_table(tmp_path)
    lancedb.connect(tmp_path).open_table("pictures").add_columns(FOLDED_PATH)
    table = open_or_create_table(tmp_path, "space", "model", DIM)
    assert len(table.nearest(embeddings(1)[0], 10, condition=path_condition("é"))) == 5
