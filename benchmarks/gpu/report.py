"""What a run found, as JSON, as lines, and as one picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The docs' figures are written by this file too, without PyTorch.
    from benchmarks.gpu.stages import Noted, Run

RESULTS, PICTURE = "gpu.json", "gpu.png"

Results = dict[str, Any]

ALONE = {"images alone": "pictures", "texts alone": "texts"}

# The variants of the encoder alone: what they are called, and Okabe and Ito's colours.
VARIANTS = {
    "ours_fp16": ("ours, fp16", "#0072B2", "o-"),
    "ours_bf16": ("ours, bf16 (traced only)", "#56B4E9", "s-"),
    "ours_fp32": ("ours, fp32", "#009E73", "^-"),
    "ours_fp16_graph": ("ours, fp16, as a CUDA graph", "#0072B2", "o:"),
    "original_fp16": ("original, fp16", "#CC79A7", "v--"),
    "compiled_original_fp16": ("original, fp16, torch.compile", "#D55E00", "D--"),
    "compiled_ours_fp16": ("ours, fp16, torch.compile", "#E69F00", "d--"),
}
# What the card multiplies in each.
PRODUCT_OF = {"ours_fp16": "fp16", "ours_bf16": "bf16", "ours_fp32": "fp32"}


def results(run: Run, *, dry: bool, seconds: float) -> Results:
    """Everything, in a form that can be written: values by stage and step, what failed, what was skipped."""
    found: Results = {
        "dry": dry,
        "took_s": round(seconds, 1),
        "stages": {
            name: {
                "seconds": round(spent, 1),
                **{
                    outcome: sum(n.stage == name and n.outcome == outcome for n in run.steps)
                    for outcome in ("passed", "failed", "skipped")
                },
            }
            for name, spent in run.seconds.items()
        },
        "failed": [_reason(noted) for noted in run.of("failed")],
        "skipped": [_reason(noted) for noted in run.of("skipped")],
        "found": {},
    }
    for noted in run.steps:
        if noted.value is not None:
            found["found"].setdefault(noted.stage, {})[noted.step] = noted.value
    found["shares"] = shares(found)
    return found


def _reason(noted: Noted) -> dict[str, str]:
    return {"stage": noted.stage, "step": noted.step, "reason": noted.reason or ""}


def rates(found: Results, stage: str) -> dict[int, dict[str, Any]]:
    """Of one stage of the encoder alone: by batch, what each variant reached.

    Those that are compiled are measured after the others, with them once more; of each the last counts.
    """
    by_batch: dict[int, dict[str, Any]] = {}
    for step, value in found["found"].get(stage, {}).items():
        batch = step.removeprefix("compiled.")
        if batch.isdigit():
            by_batch.setdefault(int(batch), {}).update(value)
    return dict(sorted(by_batch.items()))


def shares(found: Results) -> dict[str, Any]:
    """Of each encoder alone, by batch: its share of the card's products, its ratio to others' rates."""
    products = found["found"].get("card", {})
    computed: dict[str, Any] = {}
    for stage in ALONE:
        flops = found["found"].get(stage, {}).get("flops", {}).get("per_item")
        for batch, measured in rates(found, stage).items():
            of = {}
            for name, precision in PRODUCT_OF.items():
                product = products.get(f"product.{precision}")
                if flops and product and name in measured:
                    of[f"{name}_of_product"] = flops * measured[name]["rate"] / (1e12 * product["tflops"])
            for other in ("compiled_original_fp16", "compiled_ours_fp16", "original_fp16"):
                if other in measured and "ours_fp16" in measured:
                    of[f"ours_fp16_vs_{other}"] = measured["ours_fp16"]["rate"] / measured[other]["rate"]
            computed.setdefault(stage, {})[str(batch)] = of
    return computed


def write(found: Results, folder: Path) -> None:
    """Writes the JSON; whoever reads meanwhile finds a whole one."""
    part = folder / f".{RESULTS}"
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / RESULTS)


def line(noted: Noted) -> str:
    """One step, for the terminal."""
    said = noted.reason if noted.reason is not None else _short(noted.value)
    outcome = "" if noted.outcome == "passed" else f"{noted.outcome.upper()}: "
    return f"{noted.stage}: {noted.step} ({noted.seconds:.1f} s): {outcome}{said}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        shown = {name: of for name, of in value.items() if name not in ("least", "most")}
        return ", ".join(f"{name} {_short(of)}" for name, of in shown.items())
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    """Four significant digits, of small ones with an exponent."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def summary(run: Run, folder: Path) -> str:
    """What a person wants to know at the end."""
    failed, skipped = run.of("failed"), run.of("skipped")
    counts = f"{len(run.of('passed'))} passed, {len(failed)} failed, {len(skipped)} skipped"
    lines = [f"\n{counts}: {folder / RESULTS}"]
    lines += [f"skipped: {noted.stage}: {noted.step}: {noted.reason}" for noted in skipped]
    lines += [f"FAILED: {noted.stage}: {noted.step}: {noted.reason}" for noted in failed]
    return "\n".join(lines)


def tables(found: Results) -> str:
    """What the docs show of a run on a GPU, in Markdown."""
    machine = found["found"]["card"]["machine"]
    failed = [f"{of['stage']}: {of['step']}: {of['reason']}" for of in found["failed"]]
    lines = [
        f"{machine['card']}, {machine['cores']} cores, PyTorch {machine['versions']['torch']}; "
        f"{len(failed)} steps failed{''.join(f'; {reason}' for reason in failed)}.",
        "",
        *_parity_table(found),
        "",
        *_alone_table(found),
        "",
        *_row(("from bytes and sentences", "items/s")),
        *_row(("---", "---")),
        *(line for name, rate in _end_to_end(found) for line in _row((name, _number(rate)))),
        "",
        *_row(("one request after the other", "p50, ms", "p99, ms")),
        *_row(("---", "---", "---")),
    ]
    for name, of in found["found"].get("latency", {}).items():
        lines += _row((_words(name), f"{of['p50_ms']:.2f}", f"{of['p99_ms']:.2f}"))
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> Iterator[str]:
    yield f"| {' | '.join(cells)} |"


def _parity_table(found: Results) -> Iterator[str]:
    yield from _row(("pair, encoder, precision", "beside", "max-abs", "min cosine"))
    yield from _row(("---",) * 4)
    for step, of in found["found"].get("parity", {}).items():
        for other, name in (("original", "the original on this GPU"), ("cpu_variant", "the CPU variant")):
            if other in of:
                distance = of[other]
                cells = (f"{distance['max_abs_diff']:.1e}", f"{distance['min_cosine']:.6f}")
                yield from _row((step.replace(".", ", "), name, *cells))


def _alone_table(found: Results) -> Iterator[str]:
    yield from _row(("encoder alone", "batch", *(label for label, _, _ in VARIANTS.values())))
    yield from _row(("---",) * (2 + len(VARIANTS)))
    for stage, unit in ALONE.items():
        for batch, measured in rates(found, stage).items():
            of_product = found["shares"][stage][str(batch)]
            cells = []
            for name in VARIANTS:
                share = of_product.get(f"{name}_of_product")
                percent = "" if share is None else f" ({100 * share:.0f} % of the card's products)"
                cells.append(f"{_number(measured[name]['rate'])}{percent}" if name in measured else "–")
            yield from _row((f"{unit}/s", str(batch), *cells))


def draw(found: Results, folder: Path) -> None:
    """Draws the picture: the encoders alone, end to end, latency."""
    # Not at once: a machine without it has figures all the same.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 8.5), layout="constrained")
        figure.suptitle(_title(found))
        # Rows of their own: the names beside the lower bars leave the upper panels as wide as they can be.
        rows: Any = figure.subfigures(2, 1)
        above, below = (row.subplots(1, 2) for row in rows)
        for axes, stage in zip(above, ALONE, strict=True):
            _draw_alone(axes, found, stage)
        _draw_bars(below[0], "from JPEG bytes and sentences, items/s", dict(_end_to_end(found)))
        _draw_bars(below[1], "one request after the other, p50 in ms", dict(_latency(found)))
        figure.savefig(folder / PICTURE, dpi=110)


def _title(found: Results) -> str:
    machine = found["found"].get("card", {}).get("machine", {})
    where = "a dry run on a CPU with tiny encoders: no figure means anything"
    if not found["dry"]:
        where = f"{machine.get('card', 'an unknown card')}, {machine.get('cores', '?')} cores"
    return f"ViT-B/32 and the multilingual DistilBERT, random weights: {where}"


def _draw_alone(axes: Any, found: Results, stage: str) -> None:
    measured = rates(found, stage)
    for name, (label, colour, style) in VARIANTS.items():
        points = {batch: of[name] for batch, of in measured.items() if name in of}
        if points:
            reached = [point["rate"] for point in points.values()]
            axes.plot(list(points), reached, style, color=colour, label=label, markersize=5)
    axes.set_title(f"encoder alone, {ALONE[stage]}/s")
    axes.set_xlabel("batch")
    if measured:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(list(measured), [str(batch) for batch in measured])
        axes.legend(fontsize=7, frameon=False)
    axes.grid(alpha=0.3)


def _end_to_end(found: Results) -> Iterator[tuple[str, float]]:
    for kind, measured in found["found"].get("end to end", {}).items():
        for name, of in measured.items():
            yield f"{kind}: {name.replace('_', ' ')}", of["rate"]


def _latency(found: Results) -> Iterator[tuple[str, float]]:
    for name, of in found["found"].get("latency", {}).items():
        yield _words(name), of["p50_ms"]


def _words(name: str) -> str:
    return name.replace("_", " ").replace(".", ": ")


def _draw_bars(axes: Any, title: str, values: Mapping[str, float]) -> None:
    axes.set_title(title)
    bars = axes.barh(list(values), list(values.values()), color="#0072B2")
    axes.bar_label(bars, [_number(value) for value in values.values()], padding=3, fontsize=8)
    axes.margins(x=0.15)
    axes.invert_yaxis()
