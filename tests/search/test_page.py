"""The page in a real browser: both tabs are clicked through, and nothing leaves this machine."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from search.indexer import index_folder
from search.page import POLICY
from search.server_process import ROOT, Addresses
from tests.search.conftest import picture

pytestmark = pytest.mark.server

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

# Where set, the screenshots are kept in this folder, to be looked at.
SCREENSHOTS = os.environ.get("SCREENSHOTS")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "pictures"
    for number in range(9):
        picture(folder / f"{number} <b>&.png", number)
    return folder


@pytest.fixture(scope="session")
def page_url(server: Addresses, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    table = tmp_path_factory.mktemp("table")
    with server.client() as client:
        index_folder(client, pictures, table)
    with _served(server.url, server.key_file, table) as url:
        yield url


class _served:  # noqa: N801  # used as a function
    """The page in a process of its own."""

    def __init__(self, server_url: str, key_file: str, table: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "search", "ui", "--url", server_url, "--key-file", key_file),
                *("--table", table, "--port", str(port)),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        match = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert match, line
        return match[0]

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.communicate()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.fail("no chromium on PATH: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Browser, page_url: str) -> Iterator[Page]:
    """The page, opened; every address that it asked for must be of this machine, and no script may fail."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(MILLISECONDS)
    expect.set_options(timeout=MILLISECONDS)
    page = context.new_page()
    asked: list[str] = []
    failures: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(page_url)
    yield page
    context.close()
    outside = [url for url in asked if urlsplit(url).scheme in ("http", "https", "ws", "wss")
               and urlsplit(url).hostname != "127.0.0.1"]  # fmt: skip
    assert asked
    assert not outside
    assert not failures


def keep(page: Page, name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)


def test_search_by_text_in_both_directions(tab: Page) -> None:
    query = tab.locator("#query textarea")
    query.fill("két kutya a hóban")
    tab.get_by_role("button", name="Search", exact=True).click()
    expect(tab.locator(".status")).to_have_text("9 of 9 pictures, the most similar first.")
    expect(tab.locator("#found img")).to_have_count(9)
    expect(tab.locator("#found").get_by_text("<b>&.png").first).to_be_visible()
    keep(tab, "search-hungarian")
    query.fill("كلبان في الثلج")
    query.press("Enter")
    tab.get_by_label("Part of the path").fill("nowhere")
    tab.get_by_role("button", name="Search", exact=True).click()
    expect(tab.locator(".status")).to_have_text("Nothing found among 9 pictures.")
    keep(tab, "search-arabic-nothing-found")


def test_example_and_search_by_picture(tab: Page, pictures: Path) -> None:
    tab.get_by_text("یک گربه روی میز").click()
    expect(tab.locator("#query textarea")).to_have_value("یک گربه روی میز")
    tab.locator("input[type=file]").first.set_input_files(pictures / "3 <b>&.png")
    expect(tab.locator("#found").get_by_text("1.000").first).to_be_visible()
    expect(tab.locator("#found").get_by_text("3 <b>&.png").first).to_be_visible()
    keep(tab, "search-by-picture")


def test_compare(tab: Page, pictures: Path) -> None:
    tab.get_by_role("tab", name="Compare").click()
    tab.locator("input[type=file]:visible, input[type=file]").nth(1).set_input_files(pictures / "0 <b>&.png")
    tab.locator("#labels textarea").fill("كلبان في الثلج\nقطة على طاولة\nلندن ليلًا")
    tab.locator("#template textarea").fill("صورة: {}")
    tab.get_by_role("button", name="Compare", exact=True).click()
    expect(tab.locator("#bars")).to_contain_text("قطة على طاولة")
    expect(tab.locator("#bars")).to_contain_text("%")
    keep(tab, "compare-arabic")
    tab.locator("#template textarea").fill("no place for the label")
    tab.get_by_role("button", name="Compare", exact=True).click()
    expect(tab.get_by_role("alert")).to_contain_text("should be a text with one {}")

    tab.locator("#images input[type=file]").set_input_files([pictures / f"{i} <b>&.png" for i in range(3)])
    tab.locator("#texts textarea").fill("two dogs\n<script>alert(1)</script>\nدو سگ در برف\n雪の中の二匹の犬")
    tab.get_by_role("button", name="Show the matrix").click()
    expect(tab.locator("#matrix td")).to_have_count(1 + 3 * 4)
    expect(tab.locator("#matrix th[scope=col]").nth(1)).to_have_text("<script>alert(1)</script>")
    expect(tab.locator("#matrix img")).to_have_count(3)
    keep(tab, "compare-matrix")


def test_server_that_is_down(browser: Browser, server: Addresses, tmp_path: Path, pictures: Path) -> None:
    with server.client() as client:
        index_folder(client, pictures, tmp_path)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, not listening
        with _served(f"http://127.0.0.1:{nobody.getsockname()[1]}", server.key_file, tmp_path) as url:
            page = browser.new_page()
            page.goto(url, timeout=MILLISECONDS)
            page.locator("#query textarea").fill("kutya", timeout=MILLISECONDS)
            page.get_by_role("button", name="Search", exact=True).click()
            alert = page.get_by_role("alert")
            expect(alert).to_contain_text("cannot be reached", timeout=MILLISECONDS)
            expect(alert).to_contain_text("make serve")
            keep(page, "server-down")
            page.close()


def test_headers(page_url: str) -> None:
    response = httpx.get(page_url)
    assert response.headers["content-security-policy"] == POLICY
    assert httpx.get(page_url, headers={"Host": "evil.example"}).status_code == 400
