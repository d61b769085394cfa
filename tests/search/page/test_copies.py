"""Equal and nearly equal pictures on the page: shown, and never touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from pictures.paths import path_to_text
from pictures.rows import FileState, Row
from pictures.table import PictureTable, open_or_create_table
from pictures.thumbnails import make_thumbnail
from search.page.copies import GROUPS, MEMBERS
from tests.search.conftest import picture
from tests.search.page.pages import NOBODY, Served, opened, served, status

EQUAL = GROUPS + 5  # groups of two
ODD = "<b>&'\".png"


@dataclass(frozen=True)
class Copied:
    """A page of a table with copies, and the folder that they are in."""

    page: Served
    table: PictureTable
    folder: Path


def row(path: Path, contents: str, degrees: float) -> Row:
    """Of a picture in a direction of its own; its number is that of a subject, far from all others."""
    small = make_thumbnail(picture(path, len(contents)).read_bytes())
    subject, degrees = divmod(degrees, 100)
    embedding = np.zeros(64, np.float32)
    embedding[int(subject)] = np.cos(np.radians(degrees))
    embedding[-1] = np.sin(np.radians(degrees))
    state = FileState(path.stat().st_size, path.stat().st_mtime_ns, contents, 1)
    return Row(path_to_text(os.fsencode(path)), state, embedding, small)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copied]:
    tmp_path = tmp_path_factory.mktemp("copied").resolve()
    folder = tmp_path / "photos"
    table = open_or_create_table(tmp_path / "table", "space", "model", 64)
    rows = [
        row(folder / f"{number:02}" / f"{copy}.png", f"contents {number}", 100 * number)
        for number in range(EQUAL)
        for copy in "ab"
    ]
    # Of cosines 1, 0.9962 and 0.9848 to the first.
    rows += [
        row(folder / ODD, "near 0", 100 * EQUAL),
        row(folder / "near 1.png", "near 1", 100 * EQUAL + 5),
        row(folder / "near 2.png", "near 2", 100 * EQUAL + 10),
    ]
    table.write(rows, [])
    files = 2 * EQUAL + 3 + MEMBERS  # the last test adds some
    (tmp_path / "served").mkdir()
    with served(NOBODY, "none", tmp_path / "table", tmp_path / "served") as page:
        yield Copied(page, table, folder)
        assert page.complaints == []
        # Whatever was asked and clicked: no file is gone.
        assert len(list(folder.rglob("*.png"))) == files


def test_groups_of_copies(browser: Browser, copied: Copied) -> None:
    """Equal ones first; with path, size, date and how near; more as one scrolls; no server is needed."""
    with opened(
        browser, copied.page.link("/copies"), permissions=["clipboard-read", "clipboard-write"]
    ) as tab:
        expect(status(tab)).to_contain_text(f"{2 * EQUAL} equal files in {EQUAL} groups")
        expect(status(tab)).to_contain_text(
            "3 nearly equal pictures in 1 group. Nothing is ever deleted here."
        )
        groups = tab.locator(".groups > li")
        expect(groups.first.locator("h2")).to_have_text("2 equal files, 1 kB each")
        expect(groups.first.locator(".known").first).to_contain_text(f"{copied.folder}/00/")
        tab.evaluate("() => scrollTo(0, document.documentElement.scrollHeight)")
        expect(groups).to_have_count(EQUAL + 1)
        near = groups.last
        expect(near.locator("h2")).to_have_text("3 nearly equal pictures")
        expect(near.locator(".known b").first).to_have_text(ODD)
        expect(near.locator(".known").nth(1)).to_contain_text("cosine 0.9962")
        expect(near.locator(".known").nth(2)).to_contain_text("cosine 0.9848")
        # The address is the state.
        tab.locator("[name=least]").select_option("0.99")
        tab.locator("[name=kind]").select_option("nearly equal pictures")
        expect(status(tab)).to_have_text("2 nearly equal pictures in 1 group. Nothing is ever deleted here.")
        tab.reload()
        expect(groups).to_have_count(1)
        tab.go_back()
        expect(groups).to_have_count(GROUPS)
        expect(tab.locator("[name=least]")).to_have_value("0.99")
        tab.go_back()
        expect(tab.locator("[name=least]")).to_have_value("0.98")
        tab.get_by_role("button", name="Copy the path of a.png").first.click()
        assert tab.evaluate("() => navigator.clipboard.readText()") == f"{copied.folder}/00/a.png"
        tab.get_by_role("link", name="Show b.png in its folder").first.click()
        expect(status(tab)).to_have_text(
            f"2 of {2 * EQUAL + 3} pictures in paths with {copied.folder}/00/, the newest first."
        )


def test_keyboard_alone(browser: Browser, copied: Copied) -> None:
    with opened(browser, copied.page.link("/copies?kind=similar")) as tab:
        expect(status(tab)).to_contain_text("3 nearly equal pictures")
        tab.keyboard.press("/")
        expect(tab.locator("[name=kind]")).to_be_focused()
        tab.locator("[name=least]").focus()
        tab.keyboard.press("Tab")
        pictures = tab.locator("a[data-path]")
        expect(pictures.nth(0)).to_be_focused()
        tab.keyboard.press("ArrowRight")
        expect(pictures.nth(1)).to_be_focused()
        tab.keyboard.press("Enter")
        expect(tab.get_by_role("dialog")).to_be_visible()
        expect(tab.locator("#name")).to_have_text("near 1.png")
        expect(tab.locator("#similarity")).to_be_hidden()
        tab.keyboard.press("ArrowRight")
        expect(tab.locator("#name")).to_have_text("near 2.png")
        tab.keyboard.press("Escape")
        expect(pictures.nth(2)).to_be_focused()
        tab.keyboard.press("Escape")
        expect(tab.locator("[name=kind]")).to_be_focused()
        pictures.nth(1).click()
        tab.get_by_role("button", name="More like this").click()
        expect(status(tab)).to_contain_text("like this picture")


@pytest.mark.parametrize(
    "words", [{"least": "-1"}, {"least": "0.5"}, {"least": "nan"}, {"kind": "all"}, {"offset": "-1"}], ids=str
)
def test_what_cannot_be_asked_for(copied: Copied, words: dict[str, str]) -> None:
    answer = copied.page.get("/copies/groups", params=words)
    assert answer.status_code == 400
    assert "Try again" in answer.text


def test_no_table_and_no_rows(browser: Browser, tmp_path: Path) -> None:
    open_or_create_table(tmp_path / "table", "space", "model", 8)
    for name, told in (
        ("table", "no equal files, no nearly equal pictures."),
        ("none", "make index IMAGES="),
    ):
        (tmp_path / f"served {name}").mkdir()
        with (
            served(NOBODY, "none", tmp_path / name, tmp_path / f"served {name}") as page,
            opened(browser, page.link("/copies"), problems=True) as tab,
        ):
            expect(status(tab)).to_contain_text(told)


def test_a_table_that_changes_is_compared_again(copied: Copied) -> None:
    """At a look from the start; not while one scrolls, whose groups would move."""
    page, table = copied.page, copied.table
    assert f"{EQUAL} groups" in page.get("/copies/groups").text
    more = [row(copied.folder / "00" / f"{n}.png", "contents 0", 0) for n in range(MEMBERS)]
    table.write(more, [])
    table.remove([f"{copied.folder}/{EQUAL - 1:02}/a.png"])
    told = page.get("/copies/groups", params={"offset": str(GROUPS)})
    assert told.text.count("<h2>") == EQUAL - GROUPS  # one equal group has one picture left, and one is near
    assert f"{EQUAL} groups" in told.text
    told = page.get("/copies/groups")
    assert f"{EQUAL - 1} groups" in told.text
    assert f"<h2>{MEMBERS + 2} equal files" in told.text
    assert "and 2 more, which the command line lists" in told.text
