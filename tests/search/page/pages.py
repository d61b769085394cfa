"""The page in a real browser: clicked and typed through, and nothing leaves this machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pillow_heif
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from clipserve.client import Management
from demo.scenes import draw
from demo.world import all_scenes
from pictures.rows import FileState, Row
from pictures.table import open_or_create_table
from pictures.thumbnails import make_thumbnail
from search.indexer import index_folder
from search.page.searcher import LIMIT
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
TABLET = (1024, 768)
PHONE = (390, 844)

NOBODY = "http://127.0.0.1:1"  # where no server is

# Where set, the screenshots are kept in this folder, to be looked at.
SCREENSHOTS = os.environ.get("SCREENSHOTS")

MANY = LIMIT + 7  # more pictures than an answer has
COUNT = 10  # pictures of the folder that is indexed
NAME = "{} <b>&.png"
TAKEN = NAME.format(4)
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
    # One of them says when, where and with what it was taken.
    exif = Image.Exif()
    exif[271], exif[272] = "Canon", "Canon EOS"
    exif.get_ifd(0x8769)[36867] = "2024:05:31 12:30:05"
    exif.get_ifd(0x8825).update({1: "N", 2: (51.0, 30.0, 0.0), 3: "W", 4: (0.0, 7.0, 30.0)})
    with Image.open(folder / TAKEN) as image:
        image.save(folder / TAKEN, exif=exif)
    return folder


# Pixels of what people have: from the camera, from the phone held upright, square, and a panorama.
SHAPES = ((480, 320), (320, 480), (360, 360), (800, 240), (480, 360))


def drawing(path: Path, number: int) -> Path:
    """Writes a picture of something, of another shape than the one before."""
    scenes = all_scenes()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = draw(scenes[(number * 37) % len(scenes)], number, SHAPES[number % len(SHAPES)])
    if path.suffix == ".heic":
        pillow_heif.from_pillow(drawn).save(path, quality=80)
    else:
        drawn.save(path)
    return path


@dataclass(frozen=True)
class Served:
    """The page in a process of its own."""

    url: str
    token: str
    process: subprocess.Popen[str]
    temporary: Path
    errors: Path

    def link(self, path: str = "/") -> str:
        """An address of the page as a stranger to it, with no cookie yet, has to open it."""
        return f"{self.url}{path}{'&' if '?' in path else '?'}token={self.token}"

    @property
    def cookies(self) -> dict[str, str]:
        return {f"clipserve_token_{urlsplit(self.url).port}": self.token}

    @property
    def cookie_lines(self) -> str:
        """For a request that is written by hand."""
        return "".join(f"Cookie: {name}={value}\r\n" for name, value in self.cookies.items())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, cookies=httpx.Cookies(self.cookies), timeout=120, **options)

    def post(self, path: str, content: bytes, origin: str | None = "the page's") -> httpx.Response:
        origin = self.url if origin == "the page's" else origin
        headers = {} if origin is None else {"Origin": origin}
        cookies = httpx.Cookies(self.cookies)
        return httpx.post(self.url + path, content=content, headers=headers, cookies=cookies, timeout=120)

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
        match = re.search(r"(http://127\.0\.0\.1:\d+)/\?token=(\S+)", line)
        assert match, line + errors.read_text()
        yield Served(match[1], match[2], process, temporary, errors)
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
def many(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page with more pictures than it sends at once; only their thumbnails exist."""
    folder = tmp_path_factory.mktemp("many").resolve()
    with server.client() as client:
        spec = Management(client).specs("clip_image")[0]
    dimension = spec.embedding_dim
    table = open_or_create_table(folder / "table", spec.space_id, spec.model_id, dimension)
    random = np.random.default_rng(1)
    small = [make_thumbnail(drawing(folder / f"{i}.jpg", i).read_bytes()) for i in range(3 * len(SHAPES))]
    vectors = random.normal(size=(MANY, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table.write(
        [
            Row(f"/none/{i:04}.png", FileState(1, i, f"{i:064x}", 1), vector, small[i % len(small)])
            for i, vector in enumerate(vectors)
        ],
        [],
    )
    with served(server.url, server.key_file, folder / "table", folder) as page:
        yield page


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
    browser: Browser,
    url: str,
    size: tuple[int, int] = DESKTOP,
    problems: bool = False,
    direction: str = "ltr",
    **options: Any,
) -> Iterator[Page]:
    """A tab; every address that it asks for must be of this machine, and no script may fail.

    Args:
        url: of the page.
        size: of the window.
        direction: `rtl` turns it as a browser's own translation does, for whoever reads from the right.
        problems: the server is to answer with 4xx or 5xx, which the browser writes into its console.
    """
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    context.set_default_timeout(MILLISECONDS)
    expect.set_options(timeout=MILLISECONDS)
    context.add_init_script(
        f"addEventListener('DOMContentLoaded', () => (document.documentElement.dir = '{direction}'))"
    )
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
    with opened(browser, page.link()) as tab:
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


def check_accessible(tab: Page) -> None:
    """Axe finds nothing, and what it does not look for: no picture without an alternative text."""
    found = Axe().run(tab)
    assert not found.response["violations"], found.generate_report()
    for image in tab.locator("img").all():
        assert image.get_attribute("alt"), image.evaluate("image => image.outerHTML")
