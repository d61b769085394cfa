"""Files: what is served, and what is not."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from clipserve.images import ImageLimits
from pictures.files import MAX_BYTES
from pictures.paths import path_to_text
from pictures.rows import FileState, Row
from pictures.table import PictureTable, open_or_create_table
from pictures.thumbnails import make_thumbnail
from search.page.originals import SHOWN_EDGE, NotServedError, Original, converted, read_original
from tests.search.conftest import picture
from tests.search.page.pages import (
    NAME,
    Served,
)


@pytest.mark.server
def test_the_file_is_served_as_it_is(page: Served, pictures: Path) -> None:
    path = pictures / NAME.format(2)
    answer = page.get("/picture", params={"path": str(path)})
    assert answer.content == path.read_bytes()
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = page.get(
        "/picture", params={"path": str(path)}, headers={"If-None-Match": answer.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.server
@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "{folder}/../../../../../../etc/passwd",
        "{folder}/./0 <b>&.png",
        "{folder}",
        "",
        "' OR path LIKE '%",
        "{folder}/0 <b>&.png\0",
        "file:///etc/passwd",
    ],
)
@pytest.mark.parametrize("route", ["picture", "details"])
def test_only_rows_are_served(page: Served, pictures: Path, path: str, route: str) -> None:
    answer = page.get(f"/{route}", params={"path": path.format(folder=pictures)})
    assert answer.status_code == 404
    assert "not in the table" in answer.json()["message"]


@pytest.mark.server
@pytest.mark.parametrize(
    "path", ["../application.py", "%2e%2e/application.py", "..%2f..%2ftable.py", "//etc/passwd"]
)
def test_static_files_are_those_of_their_folder(page: Served, path: str) -> None:
    with socket.create_connection(("127.0.0.1", urlsplit(page.url).port or 0)) as connection:
        connection.sendall(
            (
                f"GET /static/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                f"{page.cookie_lines}\r\n"
            ).encode()
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404")


def table_of(folder: Path, paths: Sequence[Path], dimension: int = 4) -> PictureTable:
    """A table with a row for each path, whatever its file is."""
    table = open_or_create_table(folder, "space", "model", dimension)
    thumbnail = make_thumbnail((picture(folder / "thumbnail.png", 1)).read_bytes())
    embedding = np.eye(dimension, dtype=np.float32)[0]
    rows = [
        Row(path_to_text(os.fsencode(path)), FileState(1, 1, f"{i:064x}", 1), embedding, thumbnail)
        for i, path in enumerate(paths)
    ]
    table.write(rows, [])
    return table


def served(table: PictureTable, path: Path) -> Original:
    """As the page does."""
    original = read_original(table, path_to_text(os.fsencode(path)))
    return original if original.media_type else converted(original, ImageLimits())


@pytest.mark.parametrize(
    ("case", "complaint"),
    [
        ("gone", "cannot be read any more"),
        ("a link to a secret", "a link has taken its place"),
        ("a folder that is a link", "a link has taken its place"),
        ("a pipe", "a link has taken its place"),
        ("a secret with a picture's name", "cannot be shown"),
        ("mark-up with a picture's name", "cannot be shown"),
        ("grown too large", "cannot be read"),
        ("a planted path", "cannot be read any more"),
    ],
)
def test_what_took_a_pictures_place_is_not_served(tmp_path: Path, case: str, complaint: str) -> None:
    """A row is no promise for ever: what lies at its path by now is looked at anew."""
    tmp_path = tmp_path.resolve()
    secrets = tmp_path / "secrets"
    picture(secrets / "a.png", 1)
    indexed = tmp_path / "pictures"
    indexed.mkdir()
    path = indexed / "album" / "a.png"
    if case == "a folder that is a link":
        path.parent.symlink_to(secrets)
    else:
        path.parent.mkdir()
    if case == "a link to a secret":
        path.symlink_to(secrets / "a.png")
    elif case == "a pipe":
        os.mkfifo(path)
    elif case == "a secret with a picture's name":
        path.write_text("root:x:0:0")
    elif case == "mark-up with a picture's name":
        path.write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    elif case == "grown too large":
        with path.open("wb") as stream:
            stream.truncate(MAX_BYTES + 1)
    elif case == "a planted path":
        path = indexed / "nowhere" / ".." / "album" / "a.png"
    table = table_of(tmp_path / "table", [path])
    with pytest.raises(NotServedError, match=complaint):
        served(table, path)


@pytest.mark.parametrize("name", ["a.png", "ä b%2f?&#.png", "back\\slash.png", b"not utf-8 \xff.png"])
def test_any_name_is_served(tmp_path: Path, name: str | bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path.resolve()) + b"/" + os.fsencode(name)))
    data = picture(tmp_path / "source.png", 3).read_bytes()
    path.write_bytes(data)
    original = served(table_of(tmp_path / "table", [path]), path)
    assert (original.data, original.media_type) == (data, "image/png")


@pytest.mark.parametrize("name", ["scan.tiff", "phone.heic"])
def test_a_format_that_browsers_do_not_show_is_converted(tmp_path: Path, name: str) -> None:
    path = tmp_path.resolve() / name
    picture(path, 4)
    original = served(table_of(tmp_path / "table", [path]), path)
    assert original.media_type == "image/jpeg"
    with Image.open(io.BytesIO(original.data)) as image:
        assert (image.format, image.size) == ("JPEG", (96, 64))
    # It is as large as the camera or the scanner made it; what is sent is not.
    picture(path, 4, (2880, 2160))
    original = served(table_of(tmp_path / "table", [path]), path)
    with Image.open(io.BytesIO(original.data)) as image:
        assert image.size == (SHOWN_EDGE, SHOWN_EDGE * 3 // 4)
