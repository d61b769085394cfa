import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from clipserve.encoder_spec import FloatArray
from search import table as table_module
from search.errors import SearchError
from search.journal import NAME as JOURNAL
from search.journal import Journal
from search.rows import FileState
from search.server_process import ROOT
from search.table import PictureTable, Row, open_or_create_table, open_table, sole_writer

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
    monkeypatch.setattr(table_module, "ANN_ROWS", 3000)
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
    with pytest.raises(SearchError, match="no pictures are indexed here; index some: make index"):
        open_table(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_table_is_a_sentence(table: PictureTable) -> None:
    table.write(rows(embeddings(3)), [])
    for manifest in (table.folder / "pictures.lance" / "_versions").iterdir():
        manifest.write_bytes(b"damaged")
    with pytest.raises(SearchError, match="the table cannot be read"):
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
        "import sys, pathlib; from search.table import sole_writer\n"
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
