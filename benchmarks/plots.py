"""The plots of `docs/benchmarks.md`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from benchmarks.ratios import OURS
from benchmarks.results_file import Results

NAMES = {
    "clipserve": "clipserve (TorchServe)",
    "clipserve_int8": "clipserve in int8",
    "clipserve_other_layout": "clipserve, workers the other way",
    "ray_serve": "clipserve on Ray Serve",
    "infinity": "infinity-emb",
    "sentence_transformers": "sentence-transformers",
}
SERVERS = ("clipserve", "clipserve_int8", "ray_serve", "infinity")

# Okabe and Ito's colours, which colour-blind people tell apart too.
COLOURS = {
    "clipserve": "#0072B2",
    "clipserve_int8": "#009E73",
    "ray_serve": "#56B4E9",
    "infinity": "#D55E00",
    "sentence_transformers": "#CC79A7",
}
MARKERS = {"clipserve": "o", "clipserve_int8": "D", "ray_serve": "s", "infinity": "^"}

CLIENTS = (1, 8, 32)
SHARES = (50, 80, 110)

# In process, drawn as lines: who, the measurement, the line's style, what it is called.
LEVELS: dict[str, Sequence[tuple[str, str, str, str]]] = {
    "image": (
        ("floors_together", "pipeline_batch8", ":", "decode, resize and encode in process, all cores"),
        ("sentence_transformers", "image", "--", "sentence-transformers in process"),
    ),
    "text": (
        ("floors_together", "text_batch32", ":", "encode in process, 32 at once, all cores"),
        ("sentence_transformers", "text_batch32", "--", "sentence-transformers in process, 32 at once"),
    ),
}
TITLES = {"image": "Pictures of 0.3 MP, one per request", "text": "Texts in 40 languages, one per request"}
UNITS = {"image": "pictures", "text": "texts"}
KINDS: tuple[Literal["image", "text"], ...] = ("image", "text")

SIZE = (10.5, 4.6)  # inches
ENGINES_SIZE = (10.5, 5.2)
RESOLUTION = 120  # dots per inch
# So that a line that passes a label does not strike it out.
BEHIND_LABELS = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}


def write_plots(results: Results, folder: Path) -> None:
    """Writes `throughput.png`, `latency.png`, `open-loop.png` and `engines.png`, as far as was measured."""
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        drawn = {
            "throughput": (_throughput, SIZE),
            "latency": (_latency, SIZE),
            "open-loop": (_open_loop, SIZE),
        }
        if "engines" in results["median"]:
            drawn["engines"] = (_engines, ENGINES_SIZE)
        for name, (draw, size) in drawn.items():
            figure = Figure(figsize=size, layout="constrained")
            draw(figure, results)
            figure.savefig(folder / f"{name}.png", dpi=RESOLUTION)


def figures_of(results: Results, who: str, what: str) -> dict[str, Any] | None:
    """Median figures of a measurement; None where it was not made."""
    figures: dict[str, Any] | None = results["median"].get(who, {}).get(what)
    return figures


def engines_of(results: Results, kind: str) -> dict[str, dict[str, Any]]:
    """Median figures of a modality's engines, by name; empty where none was measured."""
    found: dict[str, dict[str, Any]] = results["median"].get("engines", {}).get(kind, {})
    return found


def _answered(results: Results, who: str, what: str) -> dict[str, Any] | None:
    """The same; None too where every request failed: there is nothing to draw."""
    figures = figures_of(results, who, what)
    return None if figures is None or figures.get("requests") == 0 else figures


def _present(results: Results) -> list[str]:
    return [server for server in SERVERS if server in results["median"]]


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _beside(count: int, number: int) -> float:
    """Where the `number`-th of `count` stands around its tick."""
    return (number - (count - 1) / 2) * 0.8 / count


def _throughput(figure: Figure, results: Results) -> None:
    servers = _present(results)
    for axes, kind in zip(figure.subplots(1, 2), KINDS, strict=True):
        for number, server in enumerate(servers):
            _bars(axes, results, server, kind, _beside(len(servers), number), 0.76 / len(servers))
        for who, measurement, line, label in LEVELS[kind]:
            figures = _answered(results, who, measurement)
            if figures is not None:
                axes.axhline(figures["rate"], color=COLOURS.get(who, "black"), linestyle=line, label=label)
        axes.set_ylabel(f"{UNITS[kind]} per second")
        # Room for the legend above what is highest.
        axes.set_ylim(0, axes.get_ylim()[1] * 1.5)
        _finish(axes, TITLES[kind])


def _bars(axes: Axes, results: Results, server: str, kind: str, offset: float, width: float) -> None:
    for place, clients in enumerate(CLIENTS):
        measurement = f"{kind}_c{clients}"
        figures = _answered(results, server, measurement)
        if figures is None:
            continue
        rate = figures["rate"]
        low, high = (results[end][server][measurement]["rate"] for end in ("min", "max"))
        bars = axes.bar(
            place + offset,
            rate,
            width,
            yerr=[[rate - low], [high - rate]],
            capsize=3,
            color=COLOURS[server],
            label=NAMES[server] if place == 0 else None,
        )
        axes.bar_label(bars, [_short(rate)], padding=3, fontsize=8, bbox=BEHIND_LABELS)


def _latency(figure: Figure, results: Results) -> None:
    servers = _present(results)
    for axes, kind in zip(figure.subplots(1, 2), KINDS, strict=True):
        for number, server in enumerate(servers):
            for place, clients in enumerate(CLIENTS):
                figures = _answered(results, server, f"{kind}_c{clients}")
                if figures is None:
                    continue
                x = place + _beside(len(servers), number)
                style = {"color": COLOURS[server], "marker": MARKERS[server]}
                axes.plot([x, x], [figures["p50_ms"], figures["p99_ms"]], color=COLOURS[server], linewidth=2)
                for percentile, size in ((50, 10), (95, 6), (99, 3)):
                    label = f"{NAMES[server]}: p50" if place == 0 and percentile == 50 else None
                    axes.plot(x, figures[f"p{percentile}_ms"], markersize=size, label=label, **style)
                axes.annotate(
                    _short(figures["p50_ms"]),
                    (x, figures["p50_ms"]),
                    textcoords="offset points",
                    xytext=(0, -15),
                    ha="center",
                    fontsize=8,
                )
        for size, label in ((6, "p95"), (3, "p99")):
            axes.plot([], [], "o", color="grey", markersize=size, label=f"smaller: {label}")
        axes.set_ylabel("latency in ms (log scale)")
        _log_scale(axes)
        _finish(axes, TITLES[kind])


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xticks(range(len(CLIENTS)), [str(clients) for clients in CLIENTS])
    axes.set_xlim(-0.5, len(CLIENTS) - 0.5)
    axes.set_xlabel("clients, each with one request under way")
    axes.legend(fontsize=8, loc="upper left", frameon=False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _log_scale(axes: Axes) -> None:
    """Upwards by powers, with room for the legend above, and labels such as 200, 500 and 1000."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.4, high * (high / low) ** 0.45)
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")


def _open_loop(figure: Figure, results: Results) -> None:
    for axes, kind in zip(figure.subplots(1, 2), KINDS, strict=True):
        for server in _present(results):
            points = [(share, _answered(results, server, f"{kind}_open{share}")) for share in SHARES]
            found = [(share, figures) for share, figures in points if figures is not None]
            if not found:
                continue
            due = [figures["offered"] for _, figures in found]
            for percentile, line in ((50, "-"), (99, ":")):
                latencies = [figures[f"p{percentile}_ms"] for _, figures in found]
                style = {"color": COLOURS[server], "marker": MARKERS[server], "linestyle": line}
                axes.plot(due, latencies, label=f"{NAMES[server]}: p{percentile}", **style)
            for share, figures in found:
                axes.annotate(
                    f"{share} %",
                    (figures["offered"], figures["p50_ms"]),
                    textcoords="offset points",
                    xytext=(0, -14),
                    ha="center",
                    fontsize=8,
                )
        _log_scale(axes)
        axes.set_xlim(0, axes.get_xlim()[1] * 1.05)
        axes.set_xlabel(f"{UNITS[kind]} due per second (labels: share of the server's capacity)")
        axes.set_title(f"Open loop: {TITLES[kind][0].lower()}{TITLES[kind][1:]}")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, loc="upper left", frameon=False)
        axes.set_ylabel("latency from the due moment in ms (log scale)")


def _engines(figure: Figure, results: Results) -> None:
    """Milliseconds of an item on all cores, alone and in a batch of eight; the fastest is above."""
    for axes, kind in zip(figure.subplots(1, 2), KINDS, strict=True):
        timed = {name: f for name, f in engines_of(results, kind).items() if "all_b8" in f and "all_b1" in f}
        names = sorted(timed, key=lambda name: float(timed[name]["all_b8"]["ms"]), reverse=True)
        for what, items, offset, label in (
            ("all_b1", 1, 0.2, "alone"),
            ("all_b8", 8, -0.2, "in a batch of 8"),
        ):
            bars = axes.barh(
                [place + offset for place in range(len(names))],
                [timed[name][what]["ms"] / items for name in names],
                0.38,
                color=[COLOURS["clipserve" if name.startswith(OURS) else "infinity"] for name in names],
                # Told apart by their pattern as well.
                alpha=1.0 if items > 1 else 0.55,
                hatch=None if items > 1 else "///",
                edgecolor="white",
                label=label,
            )
            axes.bar_label(bars, [_short(timed[n][what]["ms"] / items) for n in names], padding=3, fontsize=8)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel(f"ms a {'picture' if kind == 'image' else kind}, encoder alone, all cores")
        axes.set_xlim(0, axes.get_xlim()[1] * 1.12)
        axes.set_title("Pictures" if kind == "image" else "Texts of 24 tokens")
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    handles = [
        Patch(facecolor="grey", hatch="///", alpha=0.55, edgecolor="white", label="alone"),
        Patch(facecolor="grey", label="in a batch of 8"),
        Patch(facecolor=COLOURS["clipserve"], label="ours"),
        Patch(facecolor=COLOURS["infinity"], label="others"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
