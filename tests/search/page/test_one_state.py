"""What is asked and what is shown are one state, which the address bar has."""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path
from typing import Any

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
    own = f" The picture itself is left out: {NAME.format(3)}."
    expect(status(tab)).to_have_text("9 of 10 pictures like this picture, the most similar first." + own)
    tab.get_by_role("button", name="Filters", exact=True).click()
    expect(tab.locator(".chip img")).to_have_count(1)
    # Text and picture together, then the picture as what is not wanted, then without it.
    tab.get_by_label("Part of the path").fill("*.png")
    ask(tab, "kutya - 0.5*ember")
    expect(status(tab)).to_contain_text("9 of 10 pictures for kutya - 0.5*ember and like this picture")
    tab.get_by_role("button", name="Turn into: not like this").click()
    expect(status(tab)).to_contain_text("9 of 10 pictures for kutya - 0.5*ember but not like this picture")
    keep(tab, "search-minus-picture")
    tab.get_by_role("button", name="Remove the picture").click()
    expect(status(tab)).to_contain_text("10 of 10 pictures for kutya - 0.5*ember in paths with *.png")
    tab.get_by_role("button", name="Clear filters").click()
    expect(status(tab)).to_contain_text("10 of 10 pictures for kutya - 0.5*ember, the most similar first.")
    tab.get_by_label("How close").select_option("fair or closer")
    tab.get_by_role("button", name="Search", exact=True).click()
    expect(status(tab)).to_contain_text("kutya - 0.5*ember, fair or closer, the most similar first.")
    scores = [float(str(one.get_attribute("data-standard"))) for one in tiles(tab).all()]
    assert 0 < len(scores) < COUNT - 1
    assert min(scores) >= 1
    assert address(tab)["least"] == ["1"]
    tab.get_by_role("button", name="Clear filters").click()
    # Left out, but where it is is told.
    tab.locator("#file").set_input_files(pictures / NAME.format(3))
    status(tab).get_by_role("link", name=NAME.format(3)).click()
    expect(status(tab)).to_contain_text("1 of 10 pictures in paths with")


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
        ("least=11", "how close: '11' is no number from 0 to 10"),
        ("least=x", "'x'"),
        ("least=nan", "'nan'"),
    ],
)
def test_numbers_out_of_range_are_named(text: str, complaint: str) -> None:
    with pytest.raises(SearchError, match=re.escape(complaint)):
        Query.read(QueryParams(text))


@pytest.mark.server
def test_a_picture_that_is_wanted_and_unwanted(page: Served, pictures: Path) -> None:
    data = (pictures / NAME.format(1)).read_bytes()
    sha256 = page.post("/pictures", data).json()["picture"]
    answer = page.get("/results", params={"q": "kutya - kutya"})
    assert answer.status_code == 400
    assert "leave one of them out" in answer.text
    assert "nothing follows the +" in page.get("/results", params={"q": "kutya +"}).text
    # Alone, what is least like it comes first, and itself not at all.
    answer = page.get("/results", params={"unlike": sha256})
    shown = [float(score) for score in re.findall(r'data-score="([-.\d]+)"', answer.text)]
    liked = page.get("/results", params={"like": sha256})
    scores = [float(score) for score in re.findall(r'data-score="([-.\d]+)"', liked.text)]
    assert shown == pytest.approx([-score for score in reversed(scores)], abs=1e-4)
    assert len(shown) == COUNT - 1


@pytest.mark.server
def test_a_picture_is_named_by_its_path_if_it_is_in_the_table(
    page: Served, pictures: Path, tmp_path: Path
) -> None:
    """The same as dropping it; no other file is even looked at."""
    path = pictures / NAME.format(1)
    sha256 = page.post("/pictures", path.read_bytes()).json()["picture"]
    by_path = page.get("/results", params={"q": f"kutya + {path}"}).text
    dropped = page.get("/results", params={"q": "kutya", "like": sha256}).text
    shown = [re.findall(r'data-(?:path|score)="([^"]+)"', text) for text in (by_path, dropped)]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 2 * (COUNT - 1)
    (tmp_path / "other.png").write_bytes(path.read_bytes())
    for other in (tmp_path / "other.png", "/etc/passwd", "/nowhere", "./0.png"):
        answer = page.get("/results", params={"q": f"kutya + {other}"})
        assert answer.status_code == 400
        assert "not in the table" in answer.text
