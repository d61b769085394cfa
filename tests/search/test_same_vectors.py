"""The twenty files through the index: what stands in the table, and how it is shown."""

from __future__ import annotations

import contextlib
import html
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from clipserve.client import Client
from clipserve.encoder_spec import FloatArray
from clipserve.similarity import cosine
from pictures.files import ENDINGS
from pictures.table import open_table
from pictures.thumbnails import EDGE, make_thumbnail
from search.indexer import index_folder
from search.page.application import Page, application
from serving.running import RunningServer
from standins.twenty_files import FILES, assert_same_vectors, display_p3, file


@pytest.mark.server
def test_every_file_has_the_same_vector(client: Client, tmp_path: Path) -> None:
    """CASES 8, 15, 21, 22, 24: in the table, and as a query."""
    pictures, table = tmp_path / "pictures", tmp_path / "table"
    pictures.mkdir()
    for name in FILES:
        (pictures / name).write_bytes(file(name))
    report = index_folder(client, pictures, table)
    assert report.failed == []
    opened = open_table(table)
    hashes = {Path(path).name: state.sha256 for path, state in opened.states().items()}
    rows = opened.by_hash(hashes.values())

    def in_table(name: str, data: bytes) -> FloatArray:
        vector: FloatArray = rows[hashes[name]][0]
        return vector

    def as_query(name: str) -> FloatArray:
        vector: FloatArray = client.embed_images([file(name)])[0]
        return vector

    assert_same_vectors(in_table, as_query)


@pytest.mark.server
def test_every_file_is_compared_by_its_own_row_on_the_page(
    server: RunningServer, client: Client, tmp_path: Path
) -> None:
    """CASES 8: what is dropped there has the vector that the index gave the same file."""
    pictures, table = tmp_path / "pictures", tmp_path / "table"
    pictures.mkdir()
    for name in FILES:
        (pictures / name).write_bytes(file(name))
    index_folder(client, pictures, table)
    opened = open_table(table)
    hashes = {Path(path).name: state.sha256 for path, state in opened.states().items()}
    rows = {name: opened.by_hash([hashes[name]])[hashes[name]][0] for name in hashes}
    with contextlib.ExitStack() as stack:
        page = application(Page(lambda: stack.enter_context(server.client()), table), "token", 80)
        here = "http://127.0.0.1"
        browser = stack.enter_context(TestClient(page, base_url=here, headers={"Origin": here}))
        browser.get("/", params={"token": "token"})
        for name in FILES:
            # The vector of what was dropped is asked with, not that of the row of the same contents.
            sha256 = browser.post("/pictures", content=file(name)).json()["picture"]
            answer = browser.get("/results", params={"like": sha256}).text
            found = {
                Path(html.unescape(path)).name: float(score)
                for path, score in re.findall(r'data-path="([^"]+)" data-score="([^"]+)"', answer)
            }
            # A query's own picture is left out, and so are copies, and what is not like it at all.
            assert found
            assert found.keys() <= rows.keys() - {name}
            for other, score in found.items():
                assert score == pytest.approx(cosine(rows[name], rows[other]), abs=1e-4)


@pytest.mark.parametrize("name", FILES)
def test_thumbnail_of_every_file(name: str) -> None:
    """CASES 22: whatever the server takes has a thumbnail, by the same code."""
    with Image.open(io.BytesIO(make_thumbnail(file(name)))) as thumbnail:
        assert thumbnail.format == "JPEG"
        assert max(thumbnail.size) <= EDGE
        upright = name == "turned.jpg"
        assert (thumbnail.height > thumbnail.width) == upright


def test_thumbnail_of_a_transparent_logo_lies_on_white() -> None:
    """CASES 8."""
    with Image.open(io.BytesIO(make_thumbnail(file("logo.png")))) as thumbnail:
        assert np.asarray(thumbnail)[0].min() > 240


def test_thumbnail_shows_the_colours_that_are_embedded() -> None:
    """CASES 15: the most saturated red of Display P3 is beyond sRGB's, (255, 0, 0)."""
    stream = io.BytesIO()
    Image.new("RGB", (50, 50), (234, 51, 35)).save(stream, "PNG", icc_profile=display_p3())
    with Image.open(io.BytesIO(make_thumbnail(stream.getvalue()))) as thumbnail:
        assert np.abs(np.asarray(thumbnail, np.int16)[25, 25] - (255, 0, 0)).max() <= 6


def test_endings_are_those_of_the_formats() -> None:
    """CASES 21."""
    assert {b".jpg", b".mpo", b".png", b".webp", b".gif", b".bmp", b".tif", b".tiff", b".avif"} <= ENDINGS
    assert {b".heic", b".heif"} <= ENDINGS
