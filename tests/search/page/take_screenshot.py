"""Makes the README's picture of the page: `.venv-search/bin/python -m tests.search.page.take_screenshot`.

With the pictures and the checkpoint of `make demo-search`, which is to be run before.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from serving.local import ROOT
from serving.running import running_torchserve
from tests.search.page.pages import CHROMIUM, FLAGS, ask, opened, served, status, tiles

OUTPUT = ROOT / "docs" / "search.webp"
WINDOW, WIDTH = (1280, 720), 960  # pixels, of the browser and of the picture
TABLE = ROOT / ".search" / "demo" / "table"


def main() -> None:
    """Asks the page, and keeps what it shows."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_torchserve(ROOT / "model_store" / "demo") as server,
        served(server.url, server.key_file, TABLE, Path(folder)) as page,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        with opened(browser, page.link(), WINDOW) as tab:
            ask(tab, "két kutya a hóban")
            expect(status(tab)).to_contain_text("két kutya a hóban")
            tiles(tab).first.hover()
            tab.wait_for_timeout(500)  # captions fade in
            with Image.open(io.BytesIO(tab.screenshot())) as image:
                image.thumbnail((WIDTH, WIDTH))
                image.convert("RGB").save(OUTPUT, "WEBP", quality=80, method=6)
        browser.close()
    print(f"{OUTPUT}: {OUTPUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
