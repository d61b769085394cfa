"""The page in a real browser: clicked and typed through, and nothing leaves this machine."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from starlette.datastructures import QueryParams

from clipserve.client import Client, Management
from clipserve.errors import ServerError
from clipserve.images import ImageLimits
from pictures.files import MAX_BYTES
from pictures.paths import path_to_text
from pictures.rows import FileState, Row
from pictures.table import PictureTable, open_or_create_table
from pictures.thumbnails import make_thumbnail
from search.errors import SearchError
from search.indexer import index_folder
from search.page.application import HEADERS
from search.page.originals import NotServedError, read_original
from search.page.searcher import PAGE, Query
from serving.local import ROOT
from serving.running import RunningServer
from tests.search.conftest import picture

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MILLISECONDS = 240_000.0  # generous: the machine may be busy

DESKTOP = (1440, 900)
PHONE = (390, 844)

# Where set, the screenshots are kept in this folder, to be looked at.
SCREENSHOTS = os.environ.get("SCREENSHOTS")

COUNT = 10  # pictures of the folder that is indexed
NAME = "{} <b>&.png"
LOGO = "logo <img src=x onerror=alert(1)> \u202eلوغو.png"


def write_logo(path: Path) -> Path:
    """A transparent logo: over black it is another picture than over white."""
    pixels = np.zeros((64, 96, 4), np.uint8)
    pixels[16:48, 24:72] = (220, 40, 60, 255)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page").resolve() / "pictures"
    for number in range(COUNT - 1):
        # Tall, wide and very wide ones.
        size = ((96, 64), (48, 96), (400, 60))[number % 3]
        picture(folder / NAME.format(number), number, size)
    write_logo(folder / LOGO)
    return folder


@dataclass(frozen=True)
class Served:
    """The page in a process of its own."""

    url: str
    process: subprocess.Popen[str]
    temporary: Path
    errors: Path

    @property
    def complaints(self) -> list[str]:
        """What it wrote to standard error; not that it ignores Ctrl-C, as under some test runners."""
        return [line for line in self.errors.read_text().splitlines() if "SIGINT" not in line]


@contextlib.contextmanager
def served(server_url: str, key_file: str, table: Path, folder: Path) -> Iterator[Served]:
    """Serves the page on a free port; temporary files and standard error go into `folder`."""
    temporary = folder / "temporary"
    temporary.mkdir()
    errors = folder / "errors"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with errors.open("w") as stream:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "search", "ui", "--url", server_url, "--key-file", key_file),
                *("--table", table, "--port", str(port)),
            ],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert match, line + errors.read_text()
        yield Served(match[0], process, temporary, errors)
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="session")
def page(server: RunningServer, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    table = tmp_path_factory.mktemp("table")
    with server.client() as client:
        index_folder(client, pictures, table)
    with served(server.url, server.key_file, table, tmp_path_factory.mktemp("served")) as page:
        yield page
        # Whatever was asked in these tests: no traceback, and no picture on disk.
        assert page.complaints == []
        assert list(page.temporary.iterdir()) == []


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.fail("no chromium on PATH: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(
    browser: Browser, url: str, size: tuple[int, int] = DESKTOP, problems: bool = False, **options: Any
) -> Iterator[Page]:
    """A tab; every address that it asks for must be of this machine, and no script may fail.

    Args:
        url: of the page.
        size: of the window.
        problems: the server is to answer with 4xx or 5xx, which the browser writes into its console.
    """
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    context.set_default_timeout(MILLISECONDS)
    expect.set_options(timeout=MILLISECONDS)
    tab = context.new_page()
    asked: list[str] = []
    failures: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: failures.append(str(error)))
    tab.on("console", lambda line: failures.append(line.text) if line.type == "error" else None)
    tab.on("dialog", lambda dialog: failures.append(dialog.message))
    tab.goto(url)
    yield tab
    context.close()
    hosts = {urlsplit(address).hostname for address in asked if not address.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}
    # Playwright's own style for screenshots is refused by the policy, too.
    failures = [failure for failure in failures if "inline style" not in failure]
    assert all("Failed to load resource" in failure for failure in failures) if problems else not failures


@pytest.fixture
def tab(browser: Browser, page: Served) -> Iterator[Page]:
    with opened(browser, page.url) as tab:
        yield tab


def keep(tab: Page, name: str) -> None:
    if SCREENSHOTS:
        tab.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def status(tab: Page) -> Locator:
    return tab.locator("#status")


def tiles(tab: Page) -> Locator:
    return tab.locator(".tiles a")


def ask(tab: Page, text: str) -> None:
    tab.locator("#query").fill(text)
    tab.locator("#query").press("Enter")


def address(tab: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(tab.url).query)


# ---- one state


@pytest.mark.server
def test_the_status_line_says_what_it_answers_in_both_directions(tab: Page) -> None:
    """CASES 52: which query it is, in words that are as the person typed them."""
    ask(tab, "két kutya a hóban")
    expect(status(tab)).to_have_text("10 of 10 pictures for két kutya a hóban, the most similar first.")
    expect(tiles(tab)).to_have_count(COUNT)
    keep(tab, "search-hungarian")
    ask(tab, "كلبان في الثلج")
    expect(status(tab)).to_contain_text("كلبان في الثلج")
    # Arabic in the field begins at the right, its line of status at the left.
    assert tab.locator("#query").evaluate("field => getComputedStyle(field).direction") == "rtl"
    assert status(tab).evaluate("line => getComputedStyle(line).direction") == "ltr"
    keep(tab, "search-arabic")
    tab.get_by_role("button", name="Filters", exact=True).click()
    tab.get_by_label("Part of the path").fill("nowhere")
    tab.get_by_label("Part of the path").press("Enter")
    expect(status(tab)).to_have_text(
        "Nothing found for كلبان في الثلج in paths with nowhere among 10 pictures."
    )
    keep(tab, "search-arabic-nothing-found")


@pytest.mark.server
def test_what_is_asked_is_what_is_shown(tab: Page, pictures: Path) -> None:
    """CASES 52: a dropped picture stays while a filter changes, and an example searches."""
    expect(status(tab)).to_have_text("10 of 10 pictures, the newest first.")
    tab.locator("#file").set_input_files(pictures / NAME.format(3))
    expect(status(tab)).to_have_text("10 of 10 pictures like this picture, the most similar first.")
    tab.get_by_role("button", name="Filters", exact=True).click()
    tab.get_by_label("Pictures at most").fill("4")
    tab.get_by_role("button", name="Search", exact=True).click()
    expect(status(tab)).to_have_text("4 of 10 pictures like this picture, the most similar first.")
    expect(tiles(tab)).to_have_count(4)
    expect(tab.locator(".chip img")).to_have_count(1)
    expect(tiles(tab).first).to_have_attribute("data-score", "1.0000")
    # Text and picture together, then the picture as what is not wanted, then without it.
    ask(tab, "kutya")
    expect(status(tab)).to_contain_text("4 of 10 pictures for kutya and like this picture")
    tab.get_by_role("button", name="Turn into: not like this").click()
    expect(status(tab)).to_contain_text("4 of 10 pictures for kutya but not like this picture")
    keep(tab, "search-minus-picture")
    tab.get_by_role("button", name="Remove the picture").click()
    expect(status(tab)).to_contain_text("4 of 10 pictures for kutya, the most similar first.")
    tab.get_by_role("button", name="Clear filters").click()
    expect(status(tab)).to_contain_text("10 of 10 pictures for kutya")


@pytest.mark.server
def test_examples_history_and_reload(tab: Page) -> None:
    """CASES 52: clicking an example searches; the address is the state, also back, forward and anew."""
    tab.get_by_text("یک گربه روی میز").click()
    expect(tab.locator("#query")).to_have_value("یک گربه روی میز")
    expect(status(tab)).to_contain_text("for یک گربه روی میز")
    ask(tab, "hó")
    expect(status(tab)).to_contain_text("for hó,")
    tab.go_back()
    expect(status(tab)).to_contain_text("for یک گربه روی میز")
    expect(tab.locator("#query")).to_have_value("یک گربه روی میز")
    tab.go_back()
    expect(status(tab)).to_have_text("10 of 10 pictures, the newest first.")
    expect(tab.locator("#query")).to_have_value("")
    tab.go_forward()
    tab.reload()
    expect(status(tab)).to_contain_text("for یک گربه روی میز")
    expect(tab.locator("#query")).to_have_value("یک گربه روی میز")
    assert address(tab) == {"q": ["یک گربه روی میز"]}


@pytest.mark.server
def test_what_was_asked_last_is_answered(tab: Page) -> None:
    """CASES 52: a slow answer does not take the place of a later question's."""
    release = threading.Event()

    def hold(route: Any) -> None:
        held.append(route)
        release.set()

    held: list[Any] = []
    tab.route("**/results?q=slow", hold)
    ask(tab, "slow")
    while not held:
        tab.wait_for_timeout(10)
    ask(tab, "quick")
    expect(status(tab)).to_contain_text("for quick,")
    with contextlib.suppress(Exception):  # it was given up by the page
        held[0].continue_()
    expect(tab.locator("body")).not_to_have_attribute("aria-busy", "true")
    expect(status(tab)).to_contain_text("for quick,")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("min=2", "least similarity: '2'"),
        ("min=x", "'x'"),
        ("limit=0", "'0'"),
        ("limit=1e9", "from 1 to 2000"),
    ],
)
def test_numbers_out_of_range_are_named(text: str, complaint: str) -> None:
    with pytest.raises(SearchError, match=re.escape(complaint)):
        Query.read(QueryParams(text))


@pytest.mark.server
def test_a_picture_that_is_wanted_and_unwanted(page: Served, pictures: Path) -> None:
    data = (pictures / NAME.format(1)).read_bytes()
    sha256 = post(page, "/pictures", data).json()["picture"]
    answer = httpx.get(f"{page.url}/results", params={"like": sha256, "unlike": sha256})
    assert answer.status_code == 400
    assert "leave one of them out" in answer.text
    # The one that is not wanted comes last of all.
    answer = httpx.get(f"{page.url}/results", params={"unlike": sha256})
    shown = re.findall(r'data-score="([-.\d]+)"', answer.text)
    assert shown[-1] == "-1.0000"
    assert len(shown) == COUNT


# ---- the same vector through every door


@pytest.mark.server
@pytest.mark.parametrize("door", ["chosen", "dropped", "pasted"])
def test_a_transparent_logo_finds_itself(browser: Browser, page: Served, pictures: Path, door: str) -> None:
    """CASES 8: 1.0000 and first; the file's own bytes are what is sent."""
    data = (pictures / LOGO).read_bytes()
    sent: list[bytes | None] = []
    with opened(browser, page.url) as tab:
        tab.on(
            "request",
            lambda request: sent.append(request.post_data_buffer) if request.method == "POST" else 0,
        )
        if door == "chosen":
            tab.locator("#file").set_input_files(pictures / LOGO)
        else:
            tab.evaluate(
                """([door, bytes]) => {
                    const files = new DataTransfer();
                    files.items.add(new File([new Uint8Array(bytes)], "logo.png", { type: "image/png" }));
                    const options = { dataTransfer: files, clipboardData: files, cancelable: true };
                    document.dispatchEvent(door === "dropped"
                        ? new DragEvent("drop", options)
                        : new ClipboardEvent("paste", options));
                }""",
                [door, list(data)],
            )
        expect(status(tab)).to_contain_text("like this picture")
        first = tiles(tab).first
        expect(first).to_have_attribute("data-score", "1.0000")
        assert first.get_attribute("data-path") == path_to_text(os.fsencode(pictures / LOGO))
        keep(tab, "search-by-picture")
    if door == "chosen":
        assert len(sent) == 1  # Chromium does not tell Playwright the bytes of a file


@pytest.mark.server
def test_the_server_gets_the_bytes_that_were_dropped(page: Served, pictures: Path, client: Client) -> None:
    """CASES 8: the page's vector is the server's own of that file, to the last bit that the score shows."""
    logo = pictures.parent / "another logo.png"
    write_logo(logo)
    # A text chunk more: no row has these contents.
    logo.write_bytes(logo.read_bytes()[:-12] + b"\0\0\0\3tEXta\0bW\xc4\x9d\x7e" + logo.read_bytes()[-12:])
    sha256 = post(page, "/pictures", logo.read_bytes()).json()["picture"]
    answer = httpx.get(f"{page.url}/results", params={"like": sha256})
    scores = [float(score) for score in re.findall(r'data-score="([-.\d]+)"', answer.text)]
    vectors = client.embed_images(list(pictures.iterdir()))
    expected = sorted((vectors @ client.embed_images([logo])[0]).tolist(), reverse=True)
    assert scores == pytest.approx(expected, abs=1e-4)


# ---- one picture, large


@pytest.mark.server
def test_the_picture_opens(browser: Browser, page: Served, pictures: Path) -> None:
    """CASES 53: the file itself with what is known of it; every button does what it says."""
    with opened(browser, page.url, permissions=["clipboard-read", "clipboard-write"]) as tab:
        ask(tab, "kutya")
        expect(status(tab)).to_contain_text("for kutya")
        tile = tiles(tab).nth(2)
        path = Path(str(tile.get_attribute("data-path")))
        with Image.open(path) as image:
            size = image.size
        tile.click()
        viewer = tab.get_by_role("dialog")
        expect(viewer).to_be_visible()
        expect(tab.locator("#size")).to_contain_text(f"{size[0]} × {size[1]} pixels")
        large = tab.locator("#large")
        assert large.evaluate("image => [image.naturalWidth, image.naturalHeight]") == list(size)
        expect(large).to_have_attribute("alt", shown_name(path.name))
        expect(tab.locator("#folder")).to_have_text(f"{pictures}/")
        expect(tab.locator("#score")).to_have_text(str(tile.get_attribute("data-score")))
        expect(tab.locator("#changed")).to_contain_text(re.compile(r"\d\d"))
        keep(tab, "picture")
        tab.get_by_role("button", name="Copy path").click()
        expect(tab.get_by_role("button", name="Copied")).to_be_visible()
        assert tab.evaluate("() => navigator.clipboard.readText()") == str(path)
        # It is in the address: reloaded, it is shown again; Back closes it.
        tab.reload()
        expect(viewer).to_be_visible()
        tab.go_back()
        expect(viewer).to_be_hidden()
        expect(status(tab)).to_contain_text("for kutya")
        tile.click()
        tab.get_by_role("button", name="Less like this").click()
        expect(status(tab)).to_contain_text("10 of 10 pictures for kutya but not like this picture")
        tiles(tab).first.click()
        path = Path(str(tiles(tab).first.get_attribute("data-path")))
        tab.get_by_role("button", name="More like this").click()
        expect(status(tab)).to_contain_text("10 of 10 pictures like this picture")
        expect(tiles(tab).first).to_have_attribute("data-path", str(path))
        expect(tiles(tab).first).to_have_attribute("data-score", "1.0000")
        tiles(tab).first.click()
        tab.get_by_role("button", name="Show in folder").click()
        expect(status(tab)).to_have_text(f"10 of 10 pictures in paths with {pictures}/, the newest first.")


@pytest.mark.server
def test_keyboard_alone(browser: Browser, page: Served) -> None:
    with opened(browser, page.url) as tab:
        tab.keyboard.press("Escape")
        tab.locator("body").evaluate("() => document.activeElement.blur()")
        tab.keyboard.press("/")
        expect(tab.locator("#query")).to_be_focused()
        tab.keyboard.type("snow / hó")
        tab.keyboard.press("Enter")
        expect(status(tab)).to_contain_text("for snow / hó,")
        tab.keyboard.press("ArrowDown")
        expect(tiles(tab).nth(0)).to_be_focused()
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowRight")
        expect(tiles(tab).nth(2)).to_be_focused()
        tab.keyboard.press("ArrowLeft")
        expect(tiles(tab).nth(1)).to_be_focused()
        tab.keyboard.press("Enter")
        expect(tab.get_by_role("dialog")).to_be_visible()
        names = [str(one.get_attribute("data-path")).rpartition("/")[2] for one in tiles(tab).all()]
        expect(tab.locator("#large")).to_have_attribute("alt", re.compile("."))
        tab.keyboard.press("ArrowRight")
        expect(tab.locator("#name")).to_have_text(shown_name(names[2]))
        tab.keyboard.press("Escape")
        expect(tab.get_by_role("dialog")).to_be_hidden()
        expect(tiles(tab).nth(2)).to_be_focused()
        tab.keyboard.press("ArrowUp")
        expect(tab.locator("#query")).to_be_focused()


def shown_name(name: str) -> str:
    return name.replace("\u202e", "\\u202e")


@pytest.mark.server
def test_names_of_strangers_are_text(tab: Page, pictures: Path) -> None:
    """Mark-up and marks of direction in a name are shown, not obeyed; `opened` fails on any script."""
    ask(tab, "logo <img src=x onerror=alert(2)>")
    expect(status(tab)).to_contain_text("for logo <img src=x onerror=alert(2)>,")
    logo = tab.get_by_alt_text(shown_name(LOGO))
    logo.click()
    expect(tab.locator("#name")).to_have_text(shown_name(LOGO))
    expect(tab.locator("#size")).to_contain_text("96 × 64 pixels")


# ---- files: what is served, and what is not


@pytest.mark.server
def test_the_file_is_served_as_it_is(page: Served, pictures: Path) -> None:
    path = pictures / NAME.format(2)
    answer = httpx.get(f"{page.url}/picture", params={"path": str(path)})
    assert answer.content == path.read_bytes()
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = httpx.get(
        f"{page.url}/picture", params={"path": str(path)}, headers={"If-None-Match": answer.headers["etag"]}
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
    answer = httpx.get(f"{page.url}/{route}", params={"path": path.format(folder=pictures)})
    assert answer.status_code == 404
    assert "not in the table" in answer.json()["message"]


@pytest.mark.server
@pytest.mark.parametrize(
    "path", ["../application.py", "%2e%2e/application.py", "..%2f..%2ftable.py", "//etc/passwd"]
)
def test_static_files_are_those_of_their_folder(page: Served, path: str) -> None:
    with socket.create_connection(("127.0.0.1", urlsplit(page.url).port or 0)) as connection:
        connection.sendall(
            f"GET /static/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
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


@pytest.mark.parametrize(
    ("case", "complaint"),
    [
        ("gone", "cannot be read any more"),
        ("a link to a secret", "a link has taken its place"),
        ("a folder that is a link", "a link has taken its place"),
        ("a pipe", "a link has taken its place"),
        ("a secret with a picture's name", "no picture any more"),
        ("mark-up with a picture's name", "no picture any more"),
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
        read_original(table, path_to_text(os.fsencode(path)), ImageLimits())


@pytest.mark.parametrize("name", ["a.png", "ä b%2f?&#.png", "back\\slash.png", b"not utf-8 \xff.png"])
def test_any_name_is_served(tmp_path: Path, name: str | bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path.resolve()) + b"/" + os.fsencode(name)))
    data = picture(tmp_path / "source.png", 3).read_bytes()
    path.write_bytes(data)
    original = read_original(
        table_of(tmp_path / "table", [path]), path_to_text(os.fsencode(path)), ImageLimits()
    )
    assert (original.data, original.media_type) == (data, "image/png")


def test_a_format_that_browsers_do_not_show_is_converted(tmp_path: Path) -> None:
    path = tmp_path.resolve() / "scan.tiff"
    picture(path, 4)
    original = read_original(table_of(tmp_path / "table", [path]), str(path), ImageLimits())
    assert original.media_type == "image/jpeg"
    with Image.open(io.BytesIO(original.data)) as image:
        assert (image.format, image.size) == ("JPEG", (96, 64))


# ---- what goes wrong


@pytest.mark.server
def test_a_text_file_with_a_pictures_name(browser: Browser, page: Served, tmp_path: Path) -> None:
    """CASES 54: a sentence with the file's name; results stay; `page` fails on any traceback."""
    text = tmp_path / "holiday.jpg"
    text.write_text("no picture at all")
    large = tmp_path / "large.png"
    with large.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with opened(browser, page.url, problems=True) as tab:
        ask(tab, "kutya")
        expect(status(tab)).to_contain_text("for kutya")
        tab.locator("#file").set_input_files([text, large])
        notice = tab.locator("#notice")
        expect(notice).to_contain_text("holiday.jpg: the bytes are no picture in an allowed format")
        expect(notice).to_contain_text(f"large.png: {MAX_BYTES + 1} bytes, allowed are {MAX_BYTES}")
        expect(tiles(tab)).to_have_count(COUNT)
        expect(tab.locator(".chip")).to_have_count(0)
        keep(tab, "no-picture")


@pytest.mark.server
def test_comparison_with_one_broken_picture_of_eight(
    browser: Browser, page: Served, pictures: Path, tmp_path: Path
) -> None:
    """CASES 55: seven rows of the matrix, and the reason in the eighth."""
    broken = tmp_path / "broken.png"
    broken.write_bytes((pictures / NAME.format(0)).read_bytes()[:200])
    files = [*(pictures / NAME.format(number) for number in range(4)), broken]
    files += [pictures / NAME.format(number) for number in range(4, 7)]
    with opened(browser, f"{page.url}/compare", problems=True) as tab:
        tab.locator("#file").set_input_files(files)
        tab.locator("#texts").fill("two dogs\n<script>alert(1)</script>\nدو سگ در برف\n雪の中の二匹の犬")
        tab.get_by_role("button", name="Compare", exact=True).click()
        expect(status(tab)).to_contain_text("7 of 8 pictures compared with 4 texts")
        rows = tab.locator("#matrix tbody tr")
        expect(rows).to_have_count(8)
        expect(rows.nth(4)).to_contain_text("broken.png")
        expect(rows.nth(4).locator(".problem")).to_contain_text("cannot be decoded")
        expect(tab.locator("#matrix td[data-cosine]")).to_have_count(7 * 4)
        expect(tab.locator("#matrix th[scope=col]").nth(1)).to_have_text("<script>alert(1)</script>")
        check_accessible(tab)
        keep(tab, "compare-matrix")


@pytest.mark.server
def test_comparison_is_the_servers_own(
    browser: Browser, page: Served, pictures: Path, client: Client
) -> None:
    labels = ["كلبان في الثلج", "قطة على طاولة", "لندن ليلًا"]
    expected = client.similarity([pictures / LOGO], labels=labels, template="صورة: {}")
    with opened(browser, f"{page.url}/compare", problems=True) as tab:
        tab.locator("#file").set_input_files(pictures / LOGO)
        tab.get_by_role("button", name=labels[0]).click()  # an example compares at once
        expect(status(tab)).to_contain_text("1 of 1 picture compared with 3 texts")
        cells = tab.locator("#matrix td[data-cosine]")
        shown = [float(str(cell.get_attribute("data-cosine"))) for cell in cells.all()]
        assert shown == pytest.approx(expected.cosine_similarity[0].tolist(), abs=1e-6)
        expect(cells.first).to_contain_text(f"{100 * expected.probabilities[0, 0]:.1f} %")
        keep(tab, "compare-arabic")
        tab.locator("#template").fill("no place for the label")
        tab.get_by_role("button", name="Compare", exact=True).click()
        expect(tab.locator("#notice")).to_contain_text("should be a text with one {}")


class Dead:
    """A server that closes every connection, and counts them."""

    def __init__(self) -> None:
        self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._refuse, daemon=True).start()

    def _refuse(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.connections += 1
                connection.close()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def dead() -> Iterator[Dead]:
    dead = Dead()
    yield dead
    dead.close()


@pytest.mark.parametrize(("retries", "at_least", "at_most"), [(False, 1, 1), (True, 3, 10_000)])
def test_retries_are_a_choice(
    dead: Dead, monkeypatch: pytest.MonkeyPatch, retries: bool, at_least: int, at_most: int
) -> None:
    """CASES 56: counted in connections, not in seconds."""
    monkeypatch.setattr("clipserve.client.connection.RETRIES_SECONDS", 0.5)
    with (
        Client(dead.url, dead.url, "token", retries=retries) as client,
        pytest.raises(ServerError, match="cannot be reached"),
    ):
        client.embed_texts(["kutya"])
    assert at_least <= dead.connections <= at_most


@pytest.mark.server
def test_server_that_is_down(
    browser: Browser, server: RunningServer, tmp_path: Path, pictures: Path, dead: Dead
) -> None:
    """CASES 56: said after one attempt; what needs no server is still there, and one may try again."""
    table = tmp_path / "table"
    with server.client() as client:
        index_folder(client, pictures, table)
    with (
        served(dead.url, server.key_file, table, tmp_path) as page,
        opened(browser, page.url, problems=True) as tab,
    ):
        expect(tiles(tab)).to_have_count(COUNT)
        ask(tab, "kutya")
        alert = tab.locator("#status[role=alert]")
        expect(alert).to_contain_text("cannot be reached")
        expect(alert).to_contain_text("make serve")
        assert dead.connections == 1
        keep(tab, "server-down")
        tab.get_by_role("button", name="Try again").click()
        expect(tab.locator("body")).not_to_have_attribute("aria-busy", "true")
        assert dead.connections == 2
        # More like this needs the table alone.
        tab.go_back()
        tiles(tab).first.click()
        tab.get_by_role("button", name="More like this").click()
        expect(status(tab)).to_contain_text("10 of 10 pictures like this picture")
        # The page itself is gone.
        page.process.terminate()
        page.process.wait()
        ask(tab, "kutya")
        expect(alert).to_contain_text("make ui")


@pytest.mark.server
def test_no_table_yet(browser: Browser, server: RunningServer, tmp_path: Path) -> None:
    with (
        served(server.url, server.key_file, tmp_path / "nothing", tmp_path) as page,
        opened(browser, page.url, problems=True) as tab,
    ):
        expect(tab.locator("#status[role=alert]")).to_contain_text("make index IMAGES=folder")
        keep(tab, "no-table")


# ---- strangers


def post(page: Served, path: str, content: bytes) -> httpx.Response:
    return httpx.post(f"{page.url}{path}", content=content, headers={"Origin": page.url}, timeout=120)


def test_headers_are_strict() -> None:
    policy = HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    assert policy.startswith("default-src 'none'")


@pytest.mark.server
@pytest.mark.parametrize("path", ["/", "/compare", "/static/search.js", "/picture?path=x", "/nothing"])
def test_headers(page: Served, path: str) -> None:
    response = httpx.get(page.url + path)
    assert {name: response.headers[name] for name in HEADERS} == HEADERS
    # A name elsewhere that was made to point here.
    port = urlsplit(page.url).port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        assert httpx.get(page.url + path, headers={"Host": host}).status_code == 400


@pytest.mark.server
@pytest.mark.parametrize("route", ["/pictures", "/comparison?text=a"])
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1", None]
)
def test_other_pages_cannot_post(page: Served, pictures: Path, route: str, origin: str | None) -> None:
    """ATTACKS C6: also without an origin, and from another port of this machine."""
    headers = {} if origin is None else {"Origin": origin}
    data = (pictures / LOGO).read_bytes()
    assert httpx.post(page.url + route, content=data, headers=headers).status_code == 403
    assert post(page, route, data).status_code == 200


@pytest.mark.server
def test_other_pages_cannot_read(page: Served) -> None:
    """ATTACKS C6: not embed, not fetch, not frame; a link from elsewhere may lead here."""
    for site in ("cross-site", "same-site"):
        asked = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        for path in ("/results?q=a", "/picture?path=x", "/"):
            assert httpx.get(page.url + path, headers=asked).status_code == 403
        framed = asked | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
        assert httpx.get(page.url, headers=framed).status_code == 403
        link = asked | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert httpx.get(page.url, headers=link).status_code == 200


@pytest.mark.server
@pytest.mark.parametrize("route", ["/pictures", "/comparison?text=a"])
@pytest.mark.parametrize("length", ["told", "not told", "no number"])
def test_uploads_are_bounded_before_they_are_read(page: Served, route: str, length: str) -> None:
    """ATTACKS C6: 300 MB are refused at their header; without one, as soon as they exceed the limit."""
    port = urlsplit(page.url).port or 0
    head = f"POST {route} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
    head += {
        "told": "Content-Length: 300000000\r\n\r\n",
        "not told": "Transfer-Encoding: chunked\r\n\r\n",
        "no number": "Content-Length: many\r\n\r\n",
    }[length]
    sent = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(MILLISECONDS / 1000)
        connection.sendall(head.encode())
        if length == "not told":
            chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
            connection.setblocking(False)
            while sent < 300_000_000:
                with contextlib.suppress(BlockingIOError):
                    if connection.recv(1, socket.MSG_PEEK):
                        break
                try:
                    sent += connection.send(chunk[sent % len(chunk) :])
                except BlockingIOError:
                    continue
                except OSError:  # closed by the page
                    break
            connection.setblocking(True)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400" if length == "no number" else b"HTTP/1.1 413")
    # What lies in the sockets' own buffers is not counted out.
    assert sent < MAX_BYTES + 20_000_000


@pytest.mark.server
@pytest.mark.parametrize("kind", ["many pixels", "another decoder"])
def test_a_dropped_picture_goes_through_the_cores_limits(page: Served, kind: str) -> None:
    """ATTACKS C6: 13,000 x 13,000 pixels, and a format that the server does not admit."""
    stream = io.BytesIO()
    if kind == "many pixels":
        Image.new("1", (13_000, 13_000)).save(stream, "PNG")
    else:
        Image.new("RGB", (8, 8)).save(stream, "PPM")
    answer = post(page, "/pictures", stream.getvalue())
    assert answer.status_code == (413 if kind == "many pixels" else 415)
    assert answer.json()["of_picture"]


@pytest.mark.server
def test_sigterm_leaves_nothing_behind(
    server: RunningServer, page: Served, pictures: Path, tmp_path: Path
) -> None:
    """ATTACKS C5: nothing is written to disk while the page runs, nothing is left when it was ended."""
    before = sorted(tmp_path.rglob("*"))
    with served(server.url, server.key_file, tmp_path / "table", tmp_path) as other:
        with server.client() as client:
            index_folder(client, pictures, tmp_path / "table")
        pixels = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        assert len(stream.getvalue()) > 3_000_000  # more than what a form parser keeps in memory
        assert post(other, "/pictures", stream.getvalue()).status_code == 200
        assert post(other, "/comparison?text=a", stream.getvalue()).status_code == 200
        # A file without a name would be seen here.
        for link in Path(f"/proc/{other.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since
                assert not link.readlink().is_relative_to(other.temporary)
        assert list(other.temporary.iterdir()) == []
        other.process.send_signal(signal.SIGTERM)
        assert other.process.wait() == 0
        assert list(other.temporary.iterdir()) == []
        assert other.complaints == []
    assert before == []


# ---- how it looks


@pytest.fixture(scope="session")
def many(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page with more pictures than it sends at once; only their thumbnails exist."""
    folder = tmp_path_factory.mktemp("many").resolve()
    with server.client() as client:
        spec = Management(client).specs("clip_image")[0]
    dimension = spec.embedding_dim
    table = open_or_create_table(folder / "table", spec.space_id, spec.model_id, dimension)
    random = np.random.default_rng(1)
    sizes = [(96, 64), (64, 96), (90, 90), (200, 40), (120, 90)]
    small = [
        make_thumbnail(picture(folder / f"{i}.png", i, size).read_bytes()) for i, size in enumerate(sizes)
    ]
    vectors = random.normal(size=(3 * PAGE + 7, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table.write(
        [
            Row(f"/none/{i:03}.png", FileState(1, i, f"{i:064x}", 1), vector, small[i % len(small)])
            for i, vector in enumerate(vectors)
        ],
        [],
    )
    with served(server.url, server.key_file, folder / "table", folder) as page:
        yield page


@pytest.mark.server
@pytest.mark.parametrize("size", [DESKTOP, (1024, 768), PHONE], ids=str)
def test_more_as_one_scrolls(browser: Browser, many: Served, size: tuple[int, int]) -> None:
    """Every picture once, in the order of their scores, and rows that fill the width."""
    with opened(browser, f"{many.url}/?q=kutya", size) as tab:
        expect(status(tab)).to_contain_text(f"{3 * PAGE + 7} of {3 * PAGE + 7} pictures for kutya")
        first = tiles(tab).first.bounding_box()
        assert first is not None
        # Results are in sight without scrolling: two rows at least.
        assert first["y"] + 2 * first["height"] < size[1]
        for page in range(1, 4):
            tiles(tab).last.scroll_into_view_if_needed()
            expect(tiles(tab).nth(page * PAGE)).to_be_attached()
        expect(tab.locator("#more")).to_have_count(0)
        paths = [str(one.get_attribute("data-path")) for one in tiles(tab).all()]
        assert len(set(paths)) == len(paths)
        scores = [float(str(one.get_attribute("data-score"))) for one in tiles(tab).all()]
        assert scores == sorted(scores, reverse=True)
        boxes = tab.locator(".tiles li").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect().toJSON())"
        )
        width = tab.locator(".tiles").evaluate("grid => grid.getBoundingClientRect().width")
        rows: dict[int, list[dict[str, float]]] = {}
        for box in boxes:
            rows.setdefault(round(box["top"]), []).append(box)
        assert len(rows) > 5
        for row in list(rows.values())[:-1]:
            assert max(one["right"] for one in row) - min(one["left"] for one in row) == pytest.approx(
                width, abs=1
            )
            assert max(one["height"] for one in row) == pytest.approx(
                min(one["height"] for one in row), abs=1
            )
        # Nothing sticks out at the side.
        assert tab.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        keep(tab, f"scrolled-{size[0]}")


@pytest.mark.server
def test_the_next_picture_may_be_on_the_next_page(browser: Browser, many: Served) -> None:
    with opened(browser, f"{many.url}/?q=kutya", problems=True) as tab:
        tab.route("**/results?*offset=*", lambda route: route.abort())  # as if one had not scrolled yet
        tiles(tab).nth(PAGE - 1).click()
        tab.unroute("**/results?*offset=*")
        tab.keyboard.press("ArrowRight")
        expect(tiles(tab)).to_have_count(2 * PAGE)
        expect(tab.locator("#name")).to_have_text(
            str(tiles(tab).nth(PAGE).locator("img").get_attribute("alt"))
        )
        # None of these files exists.
        expect(tab.locator("#unshown")).to_contain_text("cannot be read any more")
        expect(tab.get_by_role("button", name="More like this")).to_be_disabled()


def check_accessible(tab: Page) -> None:
    """Axe finds nothing, and what it does not look for: no picture without an alternative text."""
    found = Axe().run(tab)
    assert not found.response["violations"], found.generate_report()
    for image in tab.locator("img").all():
        assert image.get_attribute("alt"), image.evaluate("image => image.outerHTML")


@pytest.mark.server
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(browser: Browser, page: Served, size: tuple[int, int], scheme: str) -> None:
    name = f"{scheme}-{size[0]}"
    with opened(browser, page.url, size, color_scheme=scheme) as tab:
        expect(tiles(tab)).to_have_count(COUNT)
        check_accessible(tab)
        keep(tab, f"newest-{name}")
        tab.get_by_role("button", name="Filters", exact=True).click()
        ask(tab, "två hundar i snön")
        expect(status(tab)).to_contain_text("två hundar")
        check_accessible(tab)
        keep(tab, f"filters-{name}")
        tiles(tab).nth(1).click()
        expect(tab.locator("#size")).to_contain_text("pixels")
        check_accessible(tab)
        keep(tab, f"picture-{name}")
        tab.get_by_role("button", name="Less like this").click()
        expect(status(tab)).to_contain_text("but not like this picture")
        check_accessible(tab)
        tab.goto(f"{page.url}/compare")
        check_accessible(tab)
        keep(tab, f"compare-{name}")
        assert tab.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
