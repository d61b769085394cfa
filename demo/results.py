"""Measures the shipped checkpoint over HTTP and writes `demo/RESULTS.md`: `make demo-results`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import transformers

from clipserve.command import run_command
from clipserve.encoder_spec import Precision
from demo.captions import load_vocabularies
from demo.languages import Bounds, LanguageResult, failed_means, measure, pool, table, weak_languages
from demo.world import HELD_OUT_ONE_IN, Scene, all_scenes
from export_scripts.export import export_pair
from export_scripts.packages.archive import build_archives
from serving.server import Server

RESULTS = Path(__file__).parent / "RESULTS.md"

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


def report(fp32: Results, bf16: Results, scenes: Sequence[Scene], seed: int) -> str:
    """The text of `RESULTS.md`."""
    held_out = sum(scene.held_out for scene in all_scenes())
    problems = weak_languages(fp32, Bounds()) + failed_means(fp32, scenes, Bounds())
    change = {code: bf16[code].recall(1) - fp32[code].recall(1) for code in fp32}
    mean_change = float(np.mean(list(change.values())))
    widest = max(change, key=lambda code: abs(change[code]))
    misses = [f"- {result.name}: {miss}" for result in fp32.values() for miss in result.misses]
    lines = [
        "# Results of the demo checkpoint",
        "",
        "Written by `make demo-results`; not edited by hand.",
        "",
        f"Over HTTP, fp32, {len(scenes)} freshly drawn scenes of different captions (seed {seed}), each "
        "caption in one of its wordings, drawn at random. "
        f"{held_out} of {len(all_scenes())} combinations (one in {HELD_OUT_ONE_IN}) were held out of "
        "training; all of them are in the pool. *Example* is the lowest probability that a picture of the "
        "running example gives to its own sentence among the three.",
        "",
        *table(fp32, scenes),
        "",
        "## Weak languages",
        "",
        *([f"- {problem}" for problem in problems] or ["None is below its bounds."]),
        "",
        "## bf16",
        "",
        f"The same scenes and wordings in bf16 change R@1 by {100 * mean_change:+.2f} points on average; the "
        f"largest change of one language is {100 * change[widest]:+.1f} points ({fp32[widest].name}).",
        "",
        f"## Misses ({len(misses)} of {len(scenes) * len(fp32)})",
        "",
        "Each line: the caption, and the scene whose picture came first instead of its own.",
        "",
        *misses,
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
        RESULTS.write_text(report(fp32, bf16, scenes, arguments.seed), encoding="utf-8")
        print(f"wrote {RESULTS}")

    return run_command("results", work)


if __name__ == "__main__":
    sys.exit(main())
