"""A picture gives the same vector through whichever door it comes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from clipserve.client import Client
from pictures.paths import path_to_text
from tests.search.page.pages import (
    LOGO,
    Served,
    keep,
    opened,
    status,
    tiles,
    write_logo,
)


@pytest.mark.server
@pytest.mark.parametrize("door", ["chosen", "dropped", "pasted"])
def test_a_transparent_logo_finds_itself(
    browser: Browser, page: Served, pictures: Path, tmp_path: Path, door: str
) -> None:
    """CASES 8: 1.0000 and first; the file's own bytes are what is sent."""
    # Not the very file, which would be left out of its own results.
    logo = tmp_path / "logo.png"
    logo.write_bytes((pictures / LOGO).read_bytes() + b"\0")
    data = logo.read_bytes()
    sent: list[bytes | None] = []
    with opened(browser, page.link()) as tab:
        tab.on(
            "request",
            lambda request: sent.append(request.post_data_buffer) if request.method == "POST" else 0,
        )
        if door == "chosen":
            tab.locator("#file").set_input_files(logo)
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
    sha256 = page.post("/pictures", logo.read_bytes()).json()["picture"]
    answer = page.get("/results", params={"like": sha256})
    scores = [float(score) for score in re.findall(r'data-score="([-.\d]+)"', answer.text)]
    vectors = client.embed_images(list(pictures.iterdir()))
    expected = sorted((vectors @ client.embed_images([logo])[0]).tolist(), reverse=True)
    assert scores == pytest.approx(expected, abs=1e-4)
