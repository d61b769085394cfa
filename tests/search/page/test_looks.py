"""How it looks: many pictures, large and small windows, light and dark, and to a screen reader."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from clipserve.client import Management
from pictures.rows import FileState, Row
from pictures.table import open_or_create_table
from pictures.thumbnails import make_thumbnail
from search.page.searcher import LIMIT, PAGE
from serving.running import RunningServer
from tests.search.conftest import picture
from tests.search.page.pages import (
    COUNT,
    DESKTOP,
    PHONE,
    Served,
    ask,
    check_accessible,
    keep,
    opened,
    served,
    status,
    tiles,
)

MANY = LIMIT + 7  # more than an answer has
PAGES = -(-LIMIT // PAGE) - 1  # after the first


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


@pytest.mark.server
@pytest.mark.parametrize(("size", "pages"), [(DESKTOP, PAGES), ((1024, 768), 3), (PHONE, 3)], ids=str)
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


@pytest.mark.server
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(browser: Browser, page: Served, size: tuple[int, int], scheme: str) -> None:
    name = f"{scheme}-{size[0]}"
    with opened(browser, page.link(), size, color_scheme=scheme) as tab:
        expect(tiles(tab)).to_have_count(COUNT)
        check_accessible(tab)
        keep(tab, f"newest-{name}")
        tab.get_by_role("button", name="Filters", exact=True).click()
        ask(tab, "två hundar i snön")
        expect(status(tab)).to_contain_text("två hundar")
        check_accessible(tab)
        keep(tab, f"filters-{name}")
        # As a browser's own translation turns it, for whoever reads from the right.
        tab.evaluate("() => (document.documentElement.dir = 'rtl')")
        assert tab.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        keep(tab, f"rtl-{name}")
        tab.evaluate("() => (document.documentElement.dir = 'ltr')")
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
