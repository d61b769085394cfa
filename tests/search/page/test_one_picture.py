"""One picture, large: with the mouse, with the keyboard alone, whatever its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.search.page.pages import (
    COUNT,
    LOGO,
    NAME,
    TAKEN,
    Served,
    ask,
    keep,
    opened,
    status,
    tiles,
)


@pytest.mark.server
def test_the_picture_opens(browser: Browser, page: Served, pictures: Path) -> None:
    """CASES 53: the file itself with what is known of it; every button does what it says."""
    with opened(browser, page.link(), permissions=["clipboard-read", "clipboard-write"]) as tab:
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
        expect(tab.locator("#score")).to_contain_text(str(tile.get_attribute("data-score")))
        meter = tab.get_by_label("By how much it stands out")
        assert meter.evaluate("meter => meter.value") == float(str(tile.get_attribute("data-standard")))
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
        expect(status(tab)).to_contain_text("9 of 10 pictures for kutya but not like this picture")
        tiles(tab).first.click()
        path = Path(str(tiles(tab).first.get_attribute("data-path")))
        tab.get_by_role("button", name="More like this").click()
        expect(status(tab)).to_contain_text("9 of 10 pictures like this picture")
        expect(tab.locator(f'.tiles a[data-path="{path}"]')).to_have_count(0)
        tiles(tab).first.click()
        tab.get_by_role("button", name="Show in folder").click()
        expect(status(tab)).to_have_text(f"10 of 10 pictures in paths with {pictures}/, the newest first.")


@pytest.mark.server
def test_when_where_and_with_what(tab: Page) -> None:
    """It is told of the picture that says it, and may be asked for."""
    tab.get_by_role("button", name="Filters", exact=True).click()
    tab.get_by_label("Camera").select_option("Canon EOS")
    tab.get_by_label("Taken since").fill("2024-05")
    tab.get_by_label("Taken until").fill("2024-05-31")
    tab.get_by_label("Taken until").press("Enter")
    expect(status(tab)).to_have_text(
        "1 of 10 pictures by Canon EOS since 2024-05 until 2024-05-31, the newest first."
    )
    tiles(tab).first.click()
    expect(tab.locator("#name")).to_have_text(TAKEN)
    expect(tab.locator("#taken")).to_have_text(re.compile("31.*2024.*12:30"))
    expect(tab.locator("#camera")).to_have_text("Canon EOS")
    expect(tab.locator("#place")).to_contain_text("51.50000, -0.12500")
    tab.keyboard.press("Escape")
    tab.get_by_role("button", name="Clear filters").click()
    expect(tiles(tab)).to_have_count(COUNT)
    tab.get_by_alt_text(NAME.format(0)).click()
    expect(tab.locator("#size")).to_contain_text("pixels")
    for fact in ("#taken", "#camera", "#place"):
        expect(tab.locator(fact)).to_be_hidden()


@pytest.mark.server
def test_a_date_that_is_none(page: Served) -> None:
    answer = page.get("/results", params={"since": "yesterday"})
    assert answer.status_code == 400
    assert "is no date; write 2024-05-31" in answer.text


@pytest.mark.server
def test_keyboard_alone(browser: Browser, page: Served) -> None:
    with opened(browser, page.link()) as tab:
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
