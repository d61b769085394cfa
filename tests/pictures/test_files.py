import os
import socket
from pathlib import Path

import pytest

from pictures.errors import PicturesError
from pictures.files import MAX_BYTES, list_pictures, read_contents
from tests.search.conftest import picture


def test_what_is_taken_and_what_is_skipped(tmp_path: Path) -> None:
    picture(tmp_path / "b.JPG", 0)
    picture(tmp_path / "deep" / "a.png", 1)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "film.mp4").write_bytes(b"0")
    (tmp_path / "empty.jpg").touch()
    with (tmp_path / "huge.jpg").open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "b.JPG")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "s.jpg"))
    listing = list_pictures(tmp_path)
    assert [Path(found.path).name for found in listing.pictures] == ["b.JPG", "a.png"]
    assert {Path(path).name: reason for path, reason in listing.skipped} == {
        "empty.jpg": "the file is empty",
        "huge.jpg": f"{MAX_BYTES + 1} bytes, allowed are {MAX_BYTES}",
        "link.jpg": "a symbolic link, not followed",
        "loop": "a symbolic link, not followed",
        "pipe.jpg": "not a regular file",
        "s.jpg": "not a regular file",
    }
    assert listing.other_endings == {".txt": 1, ".mp4": 1}


def test_a_link_to_the_folder_itself_is_followed(tmp_path: Path) -> None:
    picture(tmp_path / "real" / "a.png", 1)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [found.path for found in list_pictures(tmp_path / "link").pictures] == [f"{tmp_path}/real/a.png"]


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.touch()])
def test_no_folder(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "nowhere")
    with pytest.raises(PicturesError, match="nowhere: no such folder; name one: make index IMAGES=folder"):
        list_pictures(tmp_path / "nowhere")


def test_a_file_that_became_a_pipe_or_a_link_is_not_waited_for(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 0)
    [found] = list_pictures(tmp_path).pictures
    path.unlink()
    os.mkfifo(path)
    assert read_contents(found).data == b""
    path.unlink()
    path.symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic"):
        read_contents(found)
