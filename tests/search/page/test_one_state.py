"""What is asked and what is shown are one state, which the address bar has."""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect
from starlette.datastructures import QueryParams

from search.errors import SearchError
from search.page.searcher import Query
from tests.search.page.pages import (
    COUNT,
    NAME,
    Served,
    address,
    ask,
    keep,
    post,
    status,
    tiles,
)


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
