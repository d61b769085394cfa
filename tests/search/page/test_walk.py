"""All of the page as somebody walks through it, in every window, by day and by night, from both sides.

Each stop is looked at by axe, and kept as a screenshot where `SCREENSHOTS` names a folder. The whole of it is
`make test-search-full`.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from pictures.table import open_or_create_table
from search.indexer import index_folder
from search.page.searcher import LIMIT
from serving.running import RunningServer
from tests.search.page.pages import (
    DESKTOP,
    MANY,
    NOBODY,
    PHONE,
    TABLET,
    Served,
    ask,
    check_accessible,
    drawing,
    keep,
    opened,
    served,
    status,
    tiles,
)

pytestmark = pytest.mark.server


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty drawings in three folders, some of them twice, one as an iPhone writes it, one as a scanner."""
    folder = tmp_path_factory.mktemp("walk").resolve() / "Photos"
    for number in range(56):
        place = ("2024/summer by the sea", "2024/two dogs", "شتاء ٢٠٢٣")[number % 3]
        drawing(folder / place / f"IMG_{number:04}.jpg", number)
    drawing(folder / "2024" / "from the phone.heic", 56)
    drawing(folder / "scan of a letter.tiff", 57)
    source = folder / "2024" / "two dogs" / "IMG_0001.jpg"
    for name in ("2024/copy of IMG_0001.jpg", "شتاء ٢٠٢٣/IMG_0001 (1).jpg"):
        shutil.copy(source, folder / name)
    with Image.open(source) as image:
        image.save(folder / "2024" / "IMG_0001 at half its quality.jpg", quality=50)
    exif = Image.Exif()
    exif[271], exif[272] = "Canon", "Canon EOS 5D"
    exif.get_ifd(0x8769)[36867] = "2024:05:31 12:30:05"
    exif.get_ifd(0x8825).update({1: "N", 2: (51.0, 30.0, 0.0), 3: "W", 4: (0.0, 7.0, 30.0)})
    with Image.open(source) as image:
        image.save(folder / "2024" / "two dogs" / "in London.jpg", exif=exif, quality=95)
    return folder


@dataclass(frozen=True)
class Pages:
    """The page in every state: with pictures, without its server, of a table without rows, without one."""

    photos: Served
    lost: Served
    empty: Served
    none: Served


@pytest.fixture(scope="session")
def pages(server: RunningServer, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    table, empty = tmp_path_factory.mktemp("walked"), tmp_path_factory.mktemp("empty")
    with server.client() as client:
        index_folder(client, photos, table)
    open_or_create_table(empty, "space", "model", 8)
    states = ((server.url, table), (NOBODY, table), (server.url, empty), (server.url, empty / "none"))
    with contextlib.ExitStack() as stack:
        all_of_them = [
            stack.enter_context(served(url, server.key_file, of, tmp_path_factory.mktemp("served")))
            for url, of in states
        ]
        yield Pages(*all_of_them)
        assert [page.complaints for page in all_of_them] == [[]] * len(all_of_them)


@dataclass(frozen=True)
class Walk:
    """A way to look at it."""

    size: tuple[int, int]
    scheme: str
    direction: str

    def __str__(self) -> str:
        return f"{self.size[0]}-{self.scheme}-{self.direction}"

    def look(self, tab: Page, stop: str) -> None:
        """What is shown now is fit to be seen."""
        expect(tab.locator("body")).not_to_have_attribute("aria-busy", "true")
        assert tab.locator("html").get_attribute("dir") == self.direction
        assert tab.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), stop
        check_accessible(tab)
        keep(tab, f"{self}-{stop}")


WALKS = [Walk(*way) for way in itertools.product((DESKTOP, TABLET, PHONE), ("light", "dark"), ("ltr", "rtl"))]
# Each window, each scheme and each direction once at least.
SOME = [Walk(DESKTOP, "light", "ltr"), Walk(TABLET, "dark", "rtl"), Walk(PHONE, "light", "rtl")]


@pytest.mark.parametrize(
    "walk",
    [pytest.param(walk, marks=() if walk in SOME else (pytest.mark.full,), id=str(walk)) for walk in WALKS],
)
def test_walk(browser: Browser, pages: Pages, photos: Path, walk: Walk) -> None:
    with opened(
        browser,
        pages.photos.link(),
        walk.size,
        problems=True,
        direction=walk.direction,
        color_scheme=walk.scheme,
    ) as tab:
        expect(status(tab)).to_contain_text("62 pictures, the newest first")
        walk.look(tab, "01-newest")
        ask(tab, "två hundar i snön")
        expect(status(tab)).to_contain_text("for två hundar i snön")
        walk.look(tab, "02-found")
        tiles(tab).nth(1).click()
        expect(tab.locator("#size")).to_contain_text("pixels")
        expect(tab.locator("#large")).not_to_have_class("preview")
        walk.look(tab, "03-large")
        tab.get_by_role("button", name="More like this").click()
        expect(status(tab)).to_contain_text("like this picture")
        walk.look(tab, "04-more-like-this")
        ask(tab, "sea + boat - 0.5*dog")
        tab.get_by_role("button", name="Turn into: not like this").click()
        expect(status(tab)).to_contain_text("but not like this picture")
        walk.look(tab, "05-plus-and-minus")
        tab.get_by_role("button", name="Remove the picture").click()
        expect(tab.locator(".chip")).to_have_count(0)
        tab.get_by_role("button", name="Filters", exact=True).click()
        tab.get_by_label("Part of the path").fill("two dogs")
        tab.get_by_label("Taken since").fill("2024-05")
        tab.get_by_label("Camera").select_option("Canon EOS 5D")
        tab.get_by_label("Taken since").press("Enter")
        expect(status(tab)).to_contain_text("by Canon EOS 5D since 2024-05")
        walk.look(tab, "06-filter")
        tab.get_by_label("Part of the path").fill("nowhere")
        tab.get_by_label("Part of the path").press("Enter")
        expect(status(tab)).to_contain_text("Nothing found")
        walk.look(tab, "07-nothing-found")
        tab.get_by_role("button", name="Clear filters").click()
        ask(tab, "كلبان في الثلج")
        expect(status(tab)).to_contain_text("كلبان")
        tab.get_by_role("button", name="Filters", exact=True).click()
        walk.look(tab, "08-arabic")
        tab.goto(f"{pages.photos.url}/?part=.heic")
        tiles(tab).first.click()
        expect(tab.locator("#size")).to_contain_text("320 × 480 pixels")
        expect(tab.locator("#large")).not_to_have_class("preview")
        walk.look(tab, "09-heic")
        tab.goto(f"{pages.photos.url}/?part=in London")
        tiles(tab).first.click()
        expect(tab.locator("#place")).to_contain_text("51.50000")
        expect(tab.locator("#large")).not_to_have_class("preview")
        walk.look(tab, "10-when-and-where")
        tab.goto(f"{pages.photos.url}/copies")
        expect(status(tab)).to_contain_text("3 equal files in 1 group")
        walk.look(tab, "11-copies")
        tab.locator("a[data-path]").nth(1).click()
        expect(tab.locator("#large")).not_to_have_class("preview")
        walk.look(tab, "12-copy-large")
        tab.goto(f"{pages.photos.url}/compare")
        walk.look(tab, "13-compare")
        files = sorted((photos / "2024" / "two dogs").iterdir())[:3]
        tab.locator("#file").set_input_files(files)
        tab.get_by_role("button", name="Compare", exact=True).click()
        expect(status(tab)).to_contain_text("3 of 3 pictures compared with 3 texts")
        walk.look(tab, "14-compared")
        tab.locator("#matrix").scroll_into_view_if_needed()
        keep(tab, f"{walk}-15-matrix")
    for served_page, stop, words in (
        (pages.lost, "16-lost-server", "cannot be reached"),
        (pages.empty, "17-no-rows", "make index IMAGES=folder"),
        (pages.none, "18-no-table", "make index IMAGES=folder"),
    ):
        with opened(
            browser,
            served_page.link(),
            walk.size,
            problems=True,
            direction=walk.direction,
            color_scheme=walk.scheme,
        ) as tab:
            if served_page is pages.lost:
                ask(tab, "kutya")
            expect(status(tab)).to_contain_text(words)
            walk.look(tab, stop)


@pytest.mark.full
@pytest.mark.parametrize("walk", WALKS, ids=str)
def test_walk_through_two_thousand(browser: Browser, many: Served, walk: Walk) -> None:
    with opened(
        browser, many.link("/?q=kutya"), walk.size, direction=walk.direction, color_scheme=walk.scheme
    ) as tab:
        expect(status(tab)).to_contain_text(f"The most similar of {MANY:,} pictures")
        while tab.locator("#more").count():
            tab.evaluate("() => scrollTo(0, document.documentElement.scrollHeight)")
            tab.wait_for_timeout(50)
        expect(tiles(tab)).to_have_count(LIMIT)
        # The last ones came after the last look below.
        tab.evaluate("() => scrollTo(0, document.documentElement.scrollHeight)")
        expect(tab.locator("#end")).to_be_in_viewport()
        walk.look(tab, "19-the-end-of-2000")
        tab.evaluate("() => scrollTo(0, document.documentElement.scrollHeight / 2)")
        tab.wait_for_timeout(100)
        keep(tab, f"{walk}-20-amid-2000")
