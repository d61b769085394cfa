"""Measures the page on 100,000 pictures: `.venv-search/bin/python -m tests.search.page.measure_page`.

Random vectors in the space of the demo checkpoint, with thumbnails of `make demo-search`, which is to be run
before. From Enter to two frames after the first two dozen thumbnails are decoded, in the browser's own clock.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from clipserve.similarity import unit_vectors
from pictures.rows import FileState, Row
from pictures.table import open_or_create_table, open_table
from search.examples import QUERIES
from serving.local import ROOT
from serving.running import running_torchserve
from tests.search.page.pages import CHROMIUM, FLAGS, ask, opened, served, tiles
from tests.search.page.take_screenshot import TABLE

ROWS, BATCH = 100_000, 10_000

CLOCK = """() => {
    window.times = [];
    let start = 0;
    addEventListener("keydown", (event) => event.key === "Enter" && (start = performance.now()), true);
    new MutationObserver((changes) => {
        for (const node of changes.flatMap((change) => [...change.addedNodes])) {
            if (node.id !== "results") continue;
            const first = [...node.querySelectorAll("img")].slice(0, 24);
            Promise.all(first.map((image) => image.decode())).then(() => requestAnimationFrame(() =>
                requestAnimationFrame(() => window.times.push(performance.now() - start))));
        }
    }).observe(document.body, { childList: true, subtree: true });
}"""


def fill(folder: Path) -> None:
    """Writes the table."""
    source = open_table(TABLE)
    small = list(source.thumbnails(sorted(source.states())[::7]).values())
    table = open_or_create_table(folder, source.space_id, source.model, source.embedding_dim)
    random = np.random.default_rng(0)
    for first in range(0, ROWS, BATCH):
        vectors = unit_vectors(random.standard_normal((BATCH, source.embedding_dim), np.float32))
        rows = [
            Row(f"/none/{i:06}.jpg", FileState(1, i, f"{i:064x}", 0), vector, small[i % len(small)])
            for i, vector in enumerate(vectors, first)
        ]
        table.write(rows, [])
    table.maintain()


def main() -> None:
    """Prints the median, the most memory that the page's process took, and the machine's load."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_torchserve(ROOT / "model_store" / "demo") as server,
        sync_playwright() as playwright,
    ):
        fill(Path(folder) / "table")
        with served(server.url, server.key_file, Path(folder) / "table", Path(folder)) as page:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
            with opened(browser, page.link()) as tab:
                tab.evaluate(CLOCK)
                for number, query in enumerate(QUERIES):
                    ask(tab, query)
                    while tab.evaluate("() => window.times.length") <= number:
                        tab.wait_for_timeout(20)
                times = tab.evaluate("() => window.times")
                while tab.locator("#more").count():
                    tab.evaluate("() => scrollTo(0, document.documentElement.scrollHeight)")
                    tab.wait_for_timeout(50)
                shown = tiles(tab).count()
            browser.close()
            told = Path(f"/proc/{page.process.pid}/status").read_text(encoding="utf-8")
    peak = int(told.split("VmHWM:")[1].split()[0]) // 1024
    print(
        f"{ROWS} pictures: first results after {statistics.median(times):.0f} ms (median of {len(times)}), "
    )
    print(f"{shown} scrolled through; {peak} MB at the peak; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
