"""The measured figures in README and docs, from the results that lie beside: `make figures`.

A page says `<!-- figures: NAME -->` and `<!-- /figures -->` on lines of their own; what is between them is
written here. A test compares, so that no page says anything else than the results.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evaluate import report as evaluate_report
from benchmarks.gpu import report as gpu_report
from benchmarks.markdown import table
from benchmarks.performance import ceiling, instructions_and_precision, int8
from benchmarks.results_file import LATEST, Results
from clipserve.command import run_command
from export_scripts import models
from scale.bulk import estimate

ROOT = Path(__file__).parents[1]
RESULTS = LATEST.parent
FORMATS = RESULTS / "formats.json"
DEMO = ROOT / "demo" / "results.json"
QUANTIZED = ROOT / "demo" / "quantized.json"

BLOCK = re.compile(r"(<!-- figures: (\S+) -->\n).*?(<!-- /figures -->\n)", re.DOTALL)


def pages() -> list[Path]:
    """Every page that may have figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def written(page: str) -> str:
    """A page with its figures as the results have them now.

    Raises:
        KeyError: it asks for figures that nothing here writes.
    """
    return BLOCK.sub(lambda found: f"{found[1]}{FIGURES[found[2]]()}{found[3]}", page)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def measured() -> str:
    """README's three rows: fidelity, languages, speed."""
    files = _read(FORMATS)["files"]
    served = [file for file in files if file["format"] == "torchscript"]
    furthest = max(file["max_abs_diff"] for file in served if file["precision"] == "fp32")
    cosine = min(file["min_cosine"] for file in served if file["precision"] == "bf16")
    demo = _read(DEMO)
    languages = demo["languages"]
    first = [language["recall_at_1"] for language in languages]
    unseen = [language["held_out_recall_at_1"] for language in languages]
    latest = _read(LATEST)
    machine, median = latest["machine"], latest["median"]
    beside = "".join(
        f"; infinity-emb beside it {theirs['image_c32']['rate']:.1f} and {theirs['text_c32']['rate']:.0f}"
        for theirs in (median.get("infinity"),)
        if theirs is not None
    )
    ours = median["clipserve"]
    rows = (
        (
            "**As the original**",
            f"Full-size encoders, random weights: in fp32 no number of a vector is more than {furthest:.1e} "
            f"off, in bf16 no vector's cosine is below {cosine:.5f}",
        ),
        (
            f"**In {len(languages)} languages**",
            "The demo checkpoint, over HTTP: a caption finds its own picture first among "
            f"{demo['scenes']} in {100 * _mean(first):.1f} % of all cases, in the weakest language in "
            f"{100 * min(first):.1f} %; where training never saw the combination, in "
            f"{100 * _mean(unseen):.1f} %",
        ),
        (
            "**How fast**",
            f"{machine['cores']} cores of {machine['cpu']} ({instructions_and_precision(latest)}), "
            f"32 clients over HTTP: {ours['image_c32']['rate']:.1f} pictures/s and "
            f"{ours['text_c32']['rate']:.0f} texts/s{beside}",
        ),
    )
    return table(("", "measured"), iter(rows))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def formats() -> str:
    """Size, distance and time of every format: what `python -m benchmarks.formats` measured."""
    return formats_text(_read(FORMATS))


def formats_text(results: Results) -> str:
    """The same of given results."""
    batches = list(results["files"][0]["cpu_ms"])
    head = ["encoder", "format", "precision", "MB", "max-abs", "min cosine", "export, s"]
    rows = (
        (
            file["modality"],
            f"`{file['format']}`",
            file["precision"],
            f"{file['megabytes']:.0f}",
            f"{file['max_abs_diff']:.1e}",
            f"{file['min_cosine']:.6f}",
            f"{file['export_s']:.0f}",
            *(
                f"{times['median']:.1f} ({times['least']:.1f}–{times['most']:.1f})"
                for times in (file["cpu_ms"][batch] for batch in batches)
            ),
        )
        for file in results["files"]
    )
    loads = ", ".join(f"{load:.1f}" for load in results["load_averages"])
    return (
        f"{table([*head, *(f'batch {batch}, ms' for batch in batches)], rows)}\n"
        f"Median (least–most) of {results['rounds']} rounds, CPU time of one thread; texts of "
        f"{results['tokens']} tokens; load\naverage {loads} before, between and after, on {results['cores']} "
        f"cores; PyTorch {results['torch']}.\n"
    )


def bulk() -> str:
    """The bulk job beside plain processes, round by round: what `make bench-bulk` measured."""
    results = _read(RESULTS / "bulk.json")

    def rows() -> Iterator[Sequence[str]]:
        rounds = [*results["rounds"], results["medians"]]
        for number, values in enumerate(rounds, 1):
            yield (
                f"round {number}" if number < len(rounds) else "median",
                f"{values['bulk_images_per_s']:.1f}",
                f"{values['plain_images_per_s']:.1f}",
                f"{values['ratio_images_per_s']:.2f}",
                f"{values['ratio_by_cpu_time']:.2f}",
                f"{values['load_average']:.1f}",
            )

    head = ("", "job, pictures/s", "processes, pictures/s", "ratio", "ratio by CPU time", "load")
    below = f"{results['pictures']:,} pictures, {results['cores']} encoders, the two in turns."
    return f"{table(head, rows())}\n{below}\n"


def search() -> str:
    """Exact and indexed search by the table's size: what `make bench-search` measured."""
    rows = (
        (
            f"{of['rows']:,}",
            of["kind"],
            f"{of['exact_p50_ms']:,.0f} ms",
            f"{of['p50_ms']:.1f} ms ({of['p95_ms']:.0f})",
            f"{of['recall@10']:.3f}",
            f"{of['index_and_compaction_seconds']:.1f} s",
            f"{of['index_mb']:,} MB",
            f"{of['table_mb'] / 1000:.2g} GB",
            f"{of['peak_rss_mb'] / 1000:.2g} GB",
        )
        for of in _read(RESULTS / "search.json")
    )
    head = (
        "rows",
        "kind",
        "exact p50",
        "indexed p50 (p95)",
        "recall@10",
        "index built and table compacted in",
    )
    return table((*head, "index", "on disk", "peak memory"), rows)


def page() -> str:
    """From Enter to results, and memory: what `make bench-page` measured."""
    path = RESULTS / "page.json"
    if not path.is_file():
        return "Not measured yet on a quiet machine.\n"
    of = _read(path)
    loads = " and ".join(f"{load:.1f}" for load in of["load_averages"])
    return (
        f"{of['rows']:,} pictures: first results {of['p50_ms']} ms after Enter (median of {of['queries']} "
        f"queries; 95 % within {of['p95_ms']} ms);\nthe page's process took {of['peak_rss_mb']} MB at most, "
        f"{of['scrolled_through']:,} pictures scrolled through. {of['cores']} cores of\n{of['cpu']}, server "
        f"and browser beside it, load average {loads} before and after.\n"
    )


def gpu() -> str:
    """What `make gpu-proof` found on a GPU, where its report lies among the results."""
    path = RESULTS / gpu_report.RESULTS
    if not path.is_file():
        return "Not measured: no GPU has run it yet.\n"
    return gpu_report.tables(_read(path))


def evaluation() -> str:
    """What each variant of the demo's pair costs in the task: what `make evaluate` measured."""
    return evaluate_report.table(_read(RESULTS / "evaluation.json"))


def quantized() -> str:
    """What fewer bits cost in retrieval."""
    found = _read(QUANTIZED)
    rows = (
        (
            way,
            f"{100 * of['mean_recall_at_1']:.1f} %",
            f"{100 * of['largest_loss']:.1f} points ({of['largest_loss_of']})"
            if of["largest_loss"] > 0
            else "none",
        )
        for way, of in found["ways"].items()
    )
    head = (
        f"{found['dimensions']} numbers as",
        f"own picture first among {found['scenes']}, mean of {found['languages']} languages",
        "largest loss of a language",
    )
    return table(head, rows)


FIGURES: dict[str, Callable[[], str]] = {
    "measured": measured,
    "quantized": quantized,
    "ceiling": ceiling,
    "formats": formats,
    "int8": int8,
    "bulk": bulk,
    "search": search,
    "page": page,
    "gpu": gpu,
    "evaluation": evaluation,
    "models": lambda: table(models.KINDS_HEAD, models.kinds()),
    "estimate": lambda: estimate.table(estimate.Assumptions()) + "\n",
}


def write_pages() -> None:
    """Writes the figures of every page anew."""
    for path in pages():
        before = path.read_text(encoding="utf-8")
        after = written(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


def main() -> int:
    """Command line; see `run_command`."""
    return run_command("figures", write_pages)


if __name__ == "__main__":
    sys.exit(main())
