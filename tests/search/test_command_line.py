from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipserve.client import Client
from pictures.files import Listing
from pictures.table import open_or_create_table, open_table
from search.__main__ import main
from search.errors import SearchError
from search.indexer import index_folder
from search.report import Report
from tests.command_lines import told
from tests.search.conftest import picture
from tests.search.stand_in import StandIn

pytestmark = pytest.mark.server

PORTS = ["80808", "0", "-1", "", "http", "78.60"]


@pytest.fixture
def words(arguments: list[str], client: Client, folder: Path, tmp_path: Path) -> list[str]:
    """The words of a search in a table of twelve pictures."""
    index_folder(client, folder, tmp_path / "table")
    return ["search", *arguments, "--table", str(tmp_path / "table")]


def found(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[tuple[str, float]]:
    assert main([*words, "--json"]) == 0
    [answer] = json.loads(capsys.readouterr().out)
    return [(hit["path"], hit["cosine_similarity"]) for hit in answer["results"]]


def test_text_ranks_as_numpy_does(
    words: list[str], client: Client, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sorted(folder.rglob("*.png"))
    cosines = (client.embed_images(paths) @ client.embed_texts(["két kutya a hóban"]).T)[:, 0]
    hits = found([*words, "--text", "két kutya a hóban", "--limit", "12"], capsys)
    assert [path for path, _ in hits] == [str(paths[i]) for i in np.argsort(-cosines)]
    np.testing.assert_allclose([score for _, score in hits], np.sort(cosines)[::-1], atol=1e-5)


def test_a_querys_own_picture_is_left_out(
    words: list[str], folder: Path, tmp_path: Path, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its contents, wherever it lies; another file that shows the same is found first."""
    own = folder / "1" / "7.png"
    copy = tmp_path / "elsewhere.png"
    copy.write_bytes(own.read_bytes())
    others = sorted(set(folder.rglob("*.png")) - {own})
    cosines = client.embed_images(others) @ client.embed_images([own])[0]
    for image in (own, copy):
        hits = found([*words, "--image", str(image), "--limit", "12"], capsys)
        assert [path for path, _ in hits] == [str(others[i]) for i in np.argsort(-cosines)]
    same = tmp_path / "same.png"
    same.write_bytes(own.read_bytes() + b"\0")
    [first, *_] = found([*words, "--image", str(same), "--limit", "12"], capsys)
    assert first == (str(own), pytest.approx(1, abs=1e-5))


def test_texts_and_pictures_are_added_and_taken_away(
    words: list[str], folder: Path, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same sum in numpy, of the server's own vectors."""
    dog = folder / "0" / "4.png"
    others = sorted(set(folder.rglob("*.png")) - {dog})
    beach, people = client.embed_texts(["a beach", "people - many"])
    wanted = 2 * beach + client.embed_images([dog])[0] - 0.5 * people
    cosines = client.embed_images(others) @ (wanted / np.linalg.norm(wanted))
    query = f'2*a beach + {dog} − 0.5*"people - many"'
    hits = found([*words, "--text", query, "--limit", "12"], capsys)
    assert [path for path, _ in hits] == [str(others[i]) for i in np.argsort(-cosines)]
    np.testing.assert_allclose([score for _, score in hits], np.sort(cosines)[::-1], atol=1e-5)


def test_a_bound_means_the_same_for_texts_and_pictures(
    words: list[str], folder: Path, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard deviations above the mean of all twelve, in numpy."""
    stored = client.embed_images(sorted(folder.rglob("*.png")))
    image = folder / "1" / "7.png"
    for query, vector in [
        (["--text", "kutya"], client.embed_texts(["kutya"])[0]),
        (["--image", str(image)], client.embed_images([image])[0]),
    ]:
        cosines = stored @ vector
        standard = (cosines - cosines.mean()) / cosines.std()
        assert main([*words, *query, "--limit", "12", "--json"]) == 0
        [answer] = json.loads(capsys.readouterr().out)
        shown = [hit["standard_score"] for hit in answer["results"]]
        kept = sorted(standard[cosines < 0.99999], reverse=True)
        np.testing.assert_allclose(shown, kept, atol=2e-3)
        hits = found([*words, *query, "--limit", "12", "--least", "0.5"], capsys)
        assert len(hits) == sum(score >= 0.5 for score in kept) < len(kept)


def test_limits_and_paths(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*words, "--text", "kutya"]
    hits = found([*words, "--limit", "12"], capsys)
    assert found([*words, "--limit", "5"], capsys) == hits[:5]
    assert [path for path, _ in found([*words, "--path", "/1/*.png"], capsys)] == [
        path for path, _ in hits if "/1/" in path
    ]


def test_captions_and_plain_output(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("két kutya a hóban\n\n雪の中の二匹の犬\n", encoding="utf-8")
    assert main([*words, "--captions", str(captions), "--limit", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[4]] == ["két kutya a hóban", "雪の中の二匹の犬"]
    assert all(line.endswith(".png") and -1 <= float(line.split()[0]) <= 1 for line in lines[1:3])


def test_contact_sheet(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "found.png"
    assert main([*words, "--text", "kutya", "--limit", "7", "--sheet", str(sheet)]) == 0
    with Image.open(sheet) as image:
        assert (image.format, image.width > 1000, image.height > 400) == ("PNG", True, True)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--image", "/nowhere.jpg"], "No such file"),
        (["--text", "beach + /nowhere.jpg"], "/nowhere.jpg: No such file"),
        (["--text", "beach +"], "nothing follows the +"),
        (["--image", __file__], "the bytes are no picture in an allowed format"),
        (["--captions", "/dev/null"], "/dev/null: no captions; write one on each line"),
        (["--text", "x", "--sheet", "/nowhere/found.png"], "No such file"),
        (["--text", "x", "--least", "10", "--sheet", "found.png"], "not written, since nothing was found"),
    ],
)
def test_mistakes(
    words: list[str], more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *more]) == 1
    error = capsys.readouterr().err
    assert error.startswith("search: ")
    assert sentence in error
    assert len(error.splitlines()) == 1


NO_FOLDER = "no folder of pictures is named; name one: make index IMAGES=folder"
NO_FILE = "no file or folder is named"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["search"], "one of the arguments --text --image --captions is required"),
        (["search", "--text", "x", "--image", "y"], "not allowed with argument --text"),
        (["search", "--text", "x", "--limit", "0"], "'0': allowed are whole numbers from 1 to 10000"),
        (["search", "--text", "x", "--limit", "ten"], "'ten': allowed are whole numbers from 1 to 10000"),
        (["search", "--text", "x", "--least", "-1"], "'-1': a standard score is between 0 and 10"),
        (["search", "--text", "x", "--least", "nan"], "'nan': a standard score is between 0 and 10"),
        (["duplicates", "--threshold", "2"], "'2': a cosine similarity is between -1 and 1"),
        (["search", "--text", " "], "nothing to look for; say what: make search TEXT="),
        (["search", "--image", ""], NO_FILE),
        (["search", "--captions", ""], NO_FILE),
        (["search", "--text", "x", "--table", ""], NO_FILE),
        (["search", "--text", "x", "--sheet", ""], NO_FILE),
        (["search", "--text", "x", "--key-file", ""], NO_FILE),
        (["search", "--image", "~nobody-of-this-name/x.jpg"], "~nobody-of-this-name/x.jpg: "),
        (["index"], "one of the arguments images --forget is required"),
        (["index", ""], NO_FOLDER),
        (["index", " "], NO_FOLDER),
        (["index", "--forget", ""], NO_FILE),
        (["index", ".", "--forget", "x"], "not allowed with argument"),
        (["index", ".", "--table", ""], NO_FILE),
        *((["ui", "--port", port], f"'{port}': allowed are whole numbers from 1 to 65535") for port in PORTS),
    ],
)
def test_usage(words: list[str], sentence: str) -> None:
    """CASES 50, 61: one sentence; what is empty is nothing, and not the folder that one is in."""
    status, error = told(main, words)
    assert status == 2
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_a_watched_folder_says_what_happens(
    arguments: list[str],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command goes on after its first run; here what it follows comes to an end."""
    asked = []

    def following(*words: Any, **options: Any) -> Iterator[Report | SearchError]:
        asked.append((words[1:], options))
        yield SearchError("it is not there")
        yield Report(Listing(), unchanged=12)
        yield Report(Listing(), removed=1)

    monkeypatch.setattr("search.watching.follow", following)
    table = tmp_path / "table"
    words = ["index", *arguments, "--table", str(table), "--watch", "poll", "--exclude", "*.gif", str(folder)]
    assert main(words) == 0
    assert asked == [((folder, table), {"exclude": ["*.gif"], "poll": True})]
    told = capsys.readouterr()
    assert "12 files found: 0 pictures unchanged, 12 to read" in told.err
    assert "it is not there; tried again" in told.err
    assert f"watching {folder}" in told.out
    assert "0 changed, 1 removed" in told.out
    # What changed nothing is not told.
    assert told.out.count("files in") == 2


def test_forget(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES 50: rows of a folder go, without a server, by whichever name of it, and its files stay."""
    for number in range(4):
        picture(tmp_path / "pictures" / str(number % 2) / f"{number}.png", number)
    table = tmp_path / "table"
    index_folder(StandIn().as_client(), tmp_path / "pictures", table)
    (tmp_path / "link").symlink_to(tmp_path / "pictures")
    words = ["index", "--table", str(table), "--forget"]
    monkeypatch.chdir(tmp_path)
    assert main([*words, "link/0"]) == 0
    assert capsys.readouterr().out == "2 rows removed; no file was touched\n"
    assert all("/pictures/1/" in path for path in open_table(table).states())
    assert main([*words, "pictures/0"]) == 1
    assert "none of the 2 rows of" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "pictures" / "1")
    assert main([*words, str(tmp_path / "pictures")]) == 0
    assert len(open_table(table)) == 0
    assert (tmp_path / "pictures" / "0" / "0.png").exists()


def test_home_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES 11: `~` is the home folder also where no shell has seen it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["index", "~/nowhere", "--table", "~/table"]) == 1
    assert f"{tmp_path}/nowhere: no such folder" in capsys.readouterr().err


def test_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert main(["ui", "--port", str(port), "--table", str(tmp_path)]) == 1
    assert (
        f"port {port} is taken by another program; stop that, or name another: make ui PORT={port + 1}"
        in (capsys.readouterr().err)
    )


def test_query_of_another_space_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_or_create_table(tmp_path / "table", "f" * 16, "another", 32)
    assert main(["search", *arguments, "--table", str(tmp_path / "table"), "--text", "kutya"]) == 1
    error = capsys.readouterr().err
    assert "its pictures were embedded by 'another'" in error
    assert "make index IMAGES=folder TABLE=" in error
