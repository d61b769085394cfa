"""Measures the page on 100,000 pictures, and keeps what it measured: `make bench-page`.

Random vectors in the space of the demo checkpoint, with thumbnails of drawings. From Enter to two frames
after the first two dozen thumbnails are decoded, in the browser's own clock: twenty queries in ten languages,
none of which was asked before. Memory is the most that the page's process held, an answer scrolled through.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, sync_playwright

from clipserve.client import Management
from clipserve.command import run_command
from clipserve.similarity import unit_vectors
from demo.captions import load_vocabularies
from demo.scenes import draw
from demo.world import all_scenes
from pictures.rows import FileState, Row
from pictures.table import open_or_create_table
from pictures.thumbnails import EDGE, shrink
from search.demo import QUERIES as SCENES
from search.examples import QUERIES
from serving.local import ROOT
from serving.running import RunningServer, running_torchserve
from tests.search.page.pages import CHROMIUM, FLAGS, Served, ask, opened, served, tiles

# `make figures` writes it into docs/search.md.
RESULTS = ROOT / "benchmarks" / "results" / "page.json"

ROWS, BATCH = 100_000, 10_000
DRAWINGS = 280

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


def fill(folder: Path, server: RunningServer) -> None:
    """Writes the table."""
    with server.client() as client:
        spec = Management(client).specs("clip_image")[0]
    scenes = all_scenes()
    small = [shrink(draw(scenes[i % len(scenes)], i, (EDGE, EDGE * 3 // 4))) for i in range(DRAWINGS)]
    table = open_or_create_table(folder, spec.space_id, spec.model_id, spec.embedding_dim)
    random = np.random.default_rng(0)
    for first in range(0, ROWS, BATCH):
        vectors = unit_vectors(random.standard_normal((BATCH, spec.embedding_dim), np.float32))
        rows = [
            Row(f"/none/{i:06}.jpg", FileState(1, i, f"{i:064x}", 0), vector, small[i % len(small)])
            for i, vector in enumerate(vectors, first)
        ]
        table.write(rows, [])
    table.maintain()


def queries() -> list[str]:
    """Twenty texts in ten languages."""
    vocabularies = load_vocabularies()
    return [*QUERIES, *(vocabularies[code].captions(scene)[1] for code, scene in SCENES)]


def ask_and_scroll(browser: Browser, page: Served) -> tuple[list[float], int]:
    """Milliseconds of each query, and how many pictures the last one's answer has, all of them shown."""
    with opened(browser, page.link()) as tab:
        tab.evaluate(CLOCK)
        for number, query in enumerate(queries()):
            ask(tab, query)
            while tab.evaluate("() => window.times.length") <= number:
                tab.wait_for_timeout(20)
        times = tab.evaluate("() => window.times")
        while tab.locator("#more").count():
            tab.evaluate("() => scrollTo(0, document.documentElement.scrollHeight)")
            tab.wait_for_timeout(50)
        return times, tiles(tab).count()


def measure() -> dict[str, object]:
    """What is kept."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_torchserve(ROOT / "model_store" / "demo") as server,
        sync_playwright() as playwright,
    ):
        fill(Path(folder) / "table", server)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        with served(server.url, server.key_file, Path(folder) / "table", Path(folder)) as page:
            before = os.getloadavg()[0]
            times, shown = ask_and_scroll(browser, page)
            told = Path(f"/proc/{page.process.pid}/status").read_text(encoding="utf-8")
        browser.close()
    return {
        "rows": ROWS,
        "queries": len(times),
        "p50_ms": round(float(np.median(times))),
        "p95_ms": round(float(np.quantile(times, 0.95))),
        "scrolled_through": shown,
        "peak_rss_mb": int(told.split("VmHWM:")[1].split()[0]) // 1024,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_averages": [round(load, 1) for load in (before, os.getloadavg()[0])],
    }


def cpu_name() -> str:
    """As Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


def main() -> int:
    """Prints what was measured, and keeps it; see `run_command`."""

    def work() -> None:
        measured = json.dumps(measure(), indent=1)
        RESULTS.write_text(f"{measured}\n", encoding="utf-8")
        print(measured)

    return run_command("page benchmark", work)


if __name__ == "__main__":
    sys.exit(main())
