"""The measured figures in README and docs, from the results that lie beside: `make figures`.

A page says `<!-- figures: NAME -->` and `<!-- /figures -->` on lines of their own; what is between them is
written here. A test compares, so that no page says anything else than the results.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cpu_kinds import AMX, kind_of
from benchmarks.evaluate import report as evaluate_report
from benchmarks.gpu import report as gpu_report
from benchmarks.ratios import (
    AS_IF_AVX2,
    INT8_PEERS,
    ONNX_RUNTIME,
    OURS,
    PRODUCTS,
    RATIOS,
)
from benchmarks.results_file import LATEST, Results
from benchmarks.tables import wanted
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


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |".replace("  ", " ") for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]]) + "\n"


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
            f"{machine['cores']} cores of {machine['cpu']} ({_machine(latest)}), 32 clients over HTTP: "
            f"{ours['image_c32']['rate']:.1f} pictures/s and {ours['text_c32']['rate']:.0f} texts/s{beside}",
        ),
    )
    return _table(("", "measured"), iter(rows))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# Of other machines than the latest.
EARLIER = ("avx2.json", "avx512-bf16.json")

# What is divided, the ratio that the machine allows, and the one that was reached.
CEILINGS = (
    ("pictures ÷ infinity-emb", "image_pipeline_limit_vs_infinity", "image_http_c32_vs_infinity"),
    (
        "pictures ÷ sentence-transformers",
        "image_pipeline_limit_vs_sentence_transformers",
        "image_http_c32_vs_sentence_transformers",
    ),
    ("texts ÷ infinity-emb", "text_in_process_vs_infinity", "text_http_c32_vs_infinity"),
)
REACHED = {
    "image_http_c32_vs_pipeline_limit": "pictures ÷ what decoding and encoding allow",
    "image_p50_c1_vs_decode_plus_forward": "p50 at one client ÷ (decode + forward)",
    "image_p50_c1_vs_infinity": "p50 at one client ÷ infinity-emb's",
    "text_http_batch32_vs_in_process": "texts in requests of 32 ÷ in process",
    "image_model_vs_gemm_per_core": "encoder ÷ bare products of its shapes",
    "image_model_vs_openvino": "encoder ÷ OpenVINO",
    "similarity_1000_known_labels_vs_image": "1,000 known labels ÷ one picture",
}


def ceiling() -> str:
    """The ratios of each machine beside what it allows and what was wanted; bold where that was met."""
    earlier = [_read(RESULTS / name) for name in EARLIER]
    latest = _read(LATEST)
    machines = [*earlier, latest] if latest not in earlier else earlier
    head = ["", *(_machine(results) for results in machines), "wanted with AMX"]

    def rows() -> Iterator[Sequence[str]]:
        for meaning, allowed, reached in CEILINGS:
            cells = (f"{_allowed(r, allowed)}, {_reached(r, reached)}" for r in machines)
            yield (f"{meaning}: ceiling, reached", *cells, wanted(reached, AMX))
        for name, meaning in REACHED.items():
            yield (meaning, *(_reached(results, name) for results in machines), wanted(name, AMX))
        gemm = (f"{r['median']['floors_alone']['gemm_gflops']:.0f} GFLOP/s" for r in machines)
        yield ("bare products of the encoder's shapes, one core", *gemm, "")
        yield (
            "memory of an image worker",
            *(f"{results['rss_image_worker_mb']:.0f} MB" for results in machines),
            "≤ 700 MB in bf16",
        )
        yield (
            "start to the first correct vector",
            *(_start(results) for results in machines),
            "≤ 10 s",
        )

    return _table(head, rows())


def _machine(results: Results) -> str:
    instructions = results["machine"]["instructions"][-1].replace("_", "-").upper()
    return f"{instructions}, {results['settings']['encoders']['image'].rpartition('-')[2]}"


def _start(results: Results) -> str:
    # As many as the archives say: those of the run itself are set once it has started.
    workers = results["settings"]["endpoints"]["clip_image"]["minWorkers"]
    return f"{results['cold_start_s']:.1f} s with {workers} worker{'s' * (workers > 1)} an endpoint"


def _allowed(results: Results, name: str) -> str:
    found = results["ratios"].get(name)
    with contextlib.suppress(KeyError):
        # Results of before this ratio was one: the quotient of the medians.
        return f"{RATIOS[name].of(results['median']) if found is None else found:.2f}"
    return "not measured"


def _reached(results: Results, name: str, kind: str = AMX) -> str:
    if name not in results["ratios"]:
        return "not measured"
    value, (low, high) = results["ratios"][name], results["ratio_spread"][name]
    strong = "**" if RATIOS[name].holds(value, kind) else ""
    return f"{strong}{value:.2f}{strong} ({low:.2f} – {high:.2f})"


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
        f"{_table([*head, *(f'batch {batch}, ms' for batch in batches)], rows)}\n"
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
    return f"{_table(head, rows())}\n{below}\n"


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
    return _table((*head, "index", "on disk", "peak memory"), rows)


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
    return _table(head, rows)


# Rows of the table of int8, where they were measured.
INT8_ROWS = (
    *(f"{OURS} {precision}" for precision in ("fp32", "bf16", "fp16", "int8")),
    *(f"{OURS} {precision}{AS_IF_AVX2}" for precision in ("fp32", "fp16", "int8")),
    f"{ONNX_RUNTIME} fp32",
    *INT8_PEERS,
)


def int8() -> str:
    """The encoder alone in int8, beside other precisions, other engines and the bare products."""
    results = _read(LATEST)
    engines = results["median"].get("engines")
    if engines is None:
        return "Not measured on this machine yet: `make bench` does.\n"
    kind = kind_of(results["machine"])
    things = [(modality, batch) for modality in ("image", "text") for batch in (1, 8)]

    def ms(modality: str, name: str, batch: int, end: str = "median") -> float | None:
        found = results[end]["engines"][modality].get(name, {}).get(f"one_b{batch}")
        return None if found is None else float(found["cpu_ms"])

    def cell(name: str, modality: str, batch: int) -> str:
        spent = ms(modality, name, batch)
        fp32 = ms(modality, f"{OURS} fp32{AS_IF_AVX2 if name.endswith(AS_IF_AVX2) else ''}", batch)
        if spent is None or fp32 is None:
            return ""
        low, high = (ms(modality, name, batch, end) for end in ("min", "max"))
        return f"{spent:.1f} ({low:.1f}–{high:.1f}), {fp32 / spent:.2f}"

    def share(slow: str, fast: str, modality: str, batch: int) -> str:
        both = ms(modality, slow, batch), ms(modality, fast, batch)
        return "" if None in both else f"{both[0] / both[1]:.2f}"  # type: ignore[operator]

    head = ("one thread, CPU ms, fp32 ÷", "a picture", "8 pictures", "a text of 24 tokens", "8 of them")
    rows = [(name, *(cell(name, *thing) for thing in things)) for name in INT8_ROWS]
    ratios = ("", "wanted", "reached", "bare products", "with their passes")
    bars = {
        ("image", 8): ("8 pictures", "image_int8_vs_fp32_per_core_b8"),
        ("image", 1): ("a picture", "image_int8_vs_fp32_per_core_b1"),
        ("text", 1): ("a text of 24 tokens", "text_int8_vs_fp32_per_core"),
    }
    of_bars = (
        (
            name,
            wanted(ratio, kind),
            _reached(results, ratio, kind),
            *(share(PRODUCTS["fp32"], PRODUCTS[way], *thing) for way in ("int8", "passes")),
        )
        for thing, (name, ratio) in bars.items()
    )
    loads = [measured["load_average"] for measured in results["rounds"]]
    return (
        f"{_table(head, (row for row in rows if any(row[1:])))}\n"
        f"{_table(ratios, of_bars)}\n"
        f"Median (least–most) of {len(loads)} rounds; {results['machine']['cpu']}, "
        f"{', '.join(results['machine']['instructions'])}; load average {min(loads):.1f} to "
        f"{max(loads):.1f}; "
        f"PyTorch {results['versions']['torch']}.\n"
    )


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
    "models": lambda: _table(models.KINDS_HEAD, models.kinds()),
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
