"""Measures the shipped checkpoint over HTTP: `make demo-results`.

Writes `demo/results.json` with everything, and from it the page `demo/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from clipserve.command import run_command
from clipserve.encoder_spec import Precision
from demo.captions import load_vocabularies
from demo.languages import (
    Bounds,
    LanguageResult,
    Summary,
    failed_means,
    measure,
    pool,
    summarise,
    table,
    weak_languages,
)
from demo.world import HELD_OUT_ONE_IN, Scene, all_scenes
from export_scripts.export import export_pair
from export_scripts.packages.archive import build_archives
from serving.server import Server

RESULTS = Path(__file__).parent / "RESULTS.md"
DATA = Path(__file__).parent / "results.json"
DIGITS = 4

Results = dict[str, LanguageResult]


def measure_precision(precision: Precision, scenes: Sequence[Scene], seed: int, work: Path) -> Results:
    """Exports the demo checkpoint, serves it, and measures every language over HTTP.

    Raises:
        ClipServeError: a step fails.
    """
    store = work / f"store-{precision}"
    export_pair("demo", None, "cpu", precision, store)
    build_archives(store, None, None)
    with Server.private(store) as server, server.client() as client:
        return measure(client, load_vocabularies(), scenes, seed)


def collect(fp32: Results, bf16: Results, scenes: Sequence[Scene], seed: int) -> dict[str, Any]:
    """What `results.json` holds: the figures of every language, and each miss as `caption -> scene found`."""
    change = {code: bf16[code].recall(1) - fp32[code].recall(1) for code in fp32}
    widest = max(change, key=lambda code: abs(change[code]))
    summaries = [
        {k: v if isinstance(v, str) else round(v, DIGITS) for k, v in asdict(summary).items()}
        for summary in summarise(fp32, scenes)
    ]
    return {
        "seed": seed,
        "scenes": len(scenes),
        "combinations": len(all_scenes()),
        "held_out": sum(scene.held_out for scene in all_scenes()),
        "languages": summaries,
        "weak": weak_languages(fp32, Bounds()) + failed_means(fp32, scenes, Bounds()),
        "bf16": {
            "mean_change": round(float(np.mean(list(change.values()))), DIGITS),
            "largest_change": round(change[widest], DIGITS),
            "largest_change_of": fp32[widest].name,
        },
        "misses": {result.name: result.misses for result in fp32.values()},
    }


def languages_of(results: dict[str, Any]) -> list[Summary]:
    """The figures of each language in `results.json`."""
    return [Summary(**entry) for entry in results["languages"]]


def report(results: dict[str, Any]) -> str:
    """The text of `RESULTS.md`, from what `results.json` holds."""
    misses = sum(len(found) for found in results["misses"].values())
    bf16 = results["bf16"]
    lines = [
        "# Results of the demo checkpoint",
        "",
        "Written by `make demo-results`; not edited by hand.",
        "",
        f"Over HTTP, fp32, {results['scenes']} freshly drawn scenes of different captions (seed "
        f"{results['seed']}), each caption in one of its wordings, drawn at random. {results['held_out']} of "
        f"{results['combinations']} combinations (one in {HELD_OUT_ONE_IN}) were held out of training; all "
        "of them are in the pool. *Example* is the lowest probability that a picture of the running example "
        "gives to its own sentence among the three.",
        "",
        *table(languages_of(results)),
        "",
        "## Weak languages",
        "",
        *([f"- {problem}" for problem in results["weak"]] or ["None is below its bounds."]),
        "",
        "## bf16",
        "",
        f"The same scenes and wordings in bf16 change R@1 by {100 * bf16['mean_change']:+.2f} points on "
        f"average; the largest change of one language is {100 * bf16['largest_change']:+.1f} points "
        f"({bf16['largest_change_of']}).",
        "",
        "## Misses",
        "",
        f"{misses} of {results['scenes'] * len(results['languages'])} captions. [results.json]({DATA.name}) "
        "has each with the scene whose picture came first instead of its own, and all figures above.",
        "",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m demo.results", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the fresh scenes")
    arguments = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def work() -> None:
        scenes = pool(arguments.seed)
        with tempfile.TemporaryDirectory(prefix="clipserve-results-") as folder:
            fp32, bf16 = (
                measure_precision(precision, scenes, arguments.seed, Path(folder))
                for precision in ("fp32", "bf16")
            )
        results = collect(fp32, bf16, scenes, arguments.seed)
        DATA.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        RESULTS.write_text(report(results), encoding="utf-8")
        print(f"wrote {RESULTS} and {DATA}; 'make figures' brings README to them")

    return run_command("results", work)


if __name__ == "__main__":
    sys.exit(main())
