"""Many pictures: more as one scrolls, without a jump; see `test_walk` for how all of it looks."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from search.page.searcher import LIMIT, PAGE
from tests.search.page.pages import (
    DESKTOP,
    MANY,
    PHONE,
    TABLET,
    Served,
    keep,
    opened,
    status,
    tiles,
)

PAGES = -(-LIMIT // PAGE) - 1  # after the first


@pytest.mark.server
@pytest.mark.parametrize(("size", "pages"), [(DESKTOP, PAGES), (TABLET, 3), (PHONE, 3)], ids=str)
def test_more_as_one_scrolls(browser: Browser, many: Served, size: tuple[int, int], pages: int) -> None:
    """Every picture once, in the order of their scores, and rows that fill the width."""
    with opened(browser, many.link("/?q=kutya"), size) as tab:
        expect(status(tab)).to_have_text(f"The most similar of {MANY:,} pictures for kutya.")
        first = tiles(tab).first.bounding_box()
        assert first is not None
        # Results are in sight without scrolling: two rows at least.
        assert first["y"] + 2 * first["height"] < size[1]
        where = tiles(tab).nth(7)
        before = where.bounding_box()
        for page in range(1, pages + 1):
            tab.evaluate("() => scrollTo(0, document.documentElement.scrollHeight)")
            expect(tiles(tab).nth(min(page * PAGE, LIMIT - 1))).to_be_attached()
        if pages == PAGES:
            expect(tab.locator("#more")).to_have_count(0)
            expect(tab.locator("#end")).to_contain_text("These are the 2,000 most similar")
        # What was there before what followed has not moved.
        tab.evaluate("() => scrollTo(0, 0)")
        assert where.bounding_box() == before
        paths = tiles(tab).evaluate_all("all => all.map(one => one.dataset.path)")
        assert len(set(paths)) == len(paths)
        assert len(paths) == LIMIT if pages == PAGES else len(paths) > pages * PAGE
        scores = tiles(tab).evaluate_all("all => all.map(one => Number(one.dataset.score))")
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
    with opened(browser, many.link("/?q=kutya"), problems=True) as tab:
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
