"""The page and the plots, from the results alone: `make bench-report`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.plots import CLIENTS, KINDS, NAMES, SERVERS, SHARES, UNITS, figures_of, write_plots
from benchmarks.ratios import RATIOS, Results

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "benchmarks"

QUIET_CORES = 0.1  # more than that is somebody else's work

Row = Sequence[str]


def summary(results: Results) -> str:
    """The ratios as lines of text, for the terminal."""
    lines = []
    for name, ratio in results["ratios"].items():
        low, high = results["ratio_spread"][name]
        lines.append(f"{name:<48}{ratio:8.2f}  ({low:.2f} to {high:.2f}){_verdict(name, ratio)}")
    lines += [
        f"{'rss_image_worker_mb':<48}{results['rss_image_worker_mb']:8.0f}",
        f"{'cold_start_s':<48}{results['cold_start_s']:8.1f}",
    ]
    lines += [f"not measured: {peer}: {note}" for peer, note in _missing(results)]
    return "\n".join(lines)


def write_page(results: Results) -> None:
    """Writes `docs/benchmarks.md` and the plots beside it."""
    PLOTS.mkdir(parents=True, exist_ok=True)
    write_plots(results, PLOTS)
    PAGE.write_text("\n".join(page(results)) + "\n", encoding="utf-8")


def page(results: Results) -> Iterator[str]:
    """The lines of `docs/benchmarks.md`."""
    yield "# Benchmarks"
    yield ""
    yield "Written by `make bench`, and again by `make bench-report`, from `benchmarks/results/latest.json`."
    yield ""
    yield from _how(results)
    yield "## Ratios"
    yield ""
    yield "Each is a quotient of figures of the same round; the median of the rounds, and their spread."
    yield ""
    yield from _table(("", "median", "min – max", "wanted", "", ""), _ratio_rows(results))
    yield "## Over HTTP"
    yield ""
    yield (
        "Closed loop: each client asks again as soon as it is answered. Medians of the rounds, rates with "
        "their spread. *CPU* is that of the server's whole process tree. *load gen.* is the share of one "
        "core that the load generator took: a process of its own, the same for all."
    )
    yield ""
    yield "![throughput by clients](benchmarks/throughput.png)"
    yield ""
    yield from _table(
        _CLOSED_HEAD, _closed_rows(results, [f"image_c{n}" for n in CLIENTS]), "pictures, 0.3 MP"
    )
    yield from _table(
        _CLOSED_HEAD,
        _closed_rows(results, ["image_2mp_c8", "image_12mp_c8"]),
        "larger pictures, 8 clients",
    )
    yield from _table(
        _CLOSED_HEAD,
        _closed_rows(results, [f"text_c{n}" for n in CLIENTS] + ["text_batch32_c8"]),
        "texts in 40 languages; `text_batch32`: 32 in a request",
    )
    yield from _table(
        _CLOSED_HEAD,
        _closed_rows(results, [f"similarity_{kind}_c1" for kind in ("fresh", "repeated", "1000_known")]),
        "a picture against labels: 8 that nobody sent before, 8 that are repeated, 1,000 known ones",
    )
    yield "![latency percentiles](benchmarks/latency.png)"
    yield ""
    yield "### Open loop"
    yield ""
    yield (
        "Pictures, or single texts, are due at random moments (Poisson) at a share of the rate that the same "
        "server reached with 32 clients; latency counts from the moment when a request was due. At 110 % "
        "every queue grows for as long as the load lasts."
    )
    yield ""
    yield "![latency under open load](benchmarks/open-loop.png)"
    yield ""
    yield from _table(
        ("", "", "load", "offered/s", "answered/s", "p50 ms", "p95 ms", "p99 ms", "failed"),
        _open_rows(results),
    )
    yield "### Bytes on the wire"
    yield ""
    yield from _table(("", "", "request", "answer"), _wire_rows(results))
    yield "## In process"
    yield ""
    yield (
        "sentence-transformers gets the JPEG files' bytes and all cores. OpenVINO gets ready pixels and "
        "computes our own encoder modules: a ceiling, nothing is decoded."
    )
    yield ""
    yield from _table(("", "", "items/s", "p50 ms of a call", "CPU ms per item"), _in_process_rows(results))
    yield (
        "The floors: our traced encoders on one thread in one process, alone on the machine, and in as many "
        "processes as there are cores at once."
    )
    yield ""
    yield from _table(("", "alone", "all cores at once"), _floor_rows(results))
    yield "## Memory and cold start"
    yield ""
    yield (
        "Resident memory is the most that was seen after any measurement. Cold start: from the command to "
        "the first correct vector of a picture; all of it: until every endpoint answers its golden input."
    )
    yield ""
    yield from _table(
        (
            "",
            "image worker MB",
            "text worker MB",
            "similarity worker MB",
            "everything MB",
            "cold start s",
            "all of it s",
        ),
        _memory_rows(results),
    )


def _how(results: Results) -> Iterator[str]:
    machine, settings, versions = results["machine"], results["settings"], results["versions"]
    yield (
        f"* machine: {machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']:.0f} GB, "
        f"{', '.join(machine['instructions'])}"
    )
    yield "* versions: " + ", ".join(f"{name} {version}" for name, version in versions.items())
    encoders = settings["encoders"]
    yield f"* checkpoints: {settings['checkpoints']}; encoders: {encoders['image']}, {encoders['text']}"
    yield "* endpoints: " + "; ".join(
        f"`{name}` {settings['workers'].get(name, archive['minWorkers'])} worker × "
        f"{archive['handler']['threads']} thread, batch {archive['batchSize']}"
        for name, archive in settings["endpoints"].items()
    )
    yield "* pictures: " + ", ".join(
        f"{key} ({p['pixels'][0]} × {p['pixels'][1]}, {p['bytes'] / 1000:.0f} kB)"
        for key, p in settings["pictures"].items()
    )
    load = [measured["load_average"] for measured in results["rounds"]]
    others = _others(results)
    yield (
        f"* {settings['rounds']} rounds, {settings['seconds']:g} s a measurement, peers in turns; load "
        f"average at their begin {', '.join(f'{value:.1f}' for value in load)}; other programs took "
        f"{others:.2f} cores during the median measurement"
        + (": **the machine was not quiet**" if others > QUIET_CORES else "")
    )
    for peer, note in _missing(results):
        yield f"* **{NAMES[peer]} was not measured**: {note}"
    yield ""


def _others(results: Results) -> float:
    values = sorted(
        figures["other_cores"]
        for measured in results["rounds"]
        for server in SERVERS
        for figures in measured.get(server, {}).values()
        if "other_cores" in figures
    )
    return values[len(values) // 2] if values else 0.0


def _missing(results: Results) -> list[tuple[str, str]]:
    return [(peer, note) for peer, note in results["peers"].items() if note != "measured"]


def _verdict(name: str, value: float) -> str:
    ratio = RATIOS[name]
    if ratio.at_least is None and ratio.at_most is None:
        return ""
    return "  met" if ratio.holds(value) else "  NOT MET"


def _ratio_rows(results: Results) -> Iterator[Row]:
    for name, ratio in RATIOS.items():
        wanted = f"≥ {ratio.at_least:g}" if ratio.at_least is not None else ""
        wanted = f"≤ {ratio.at_most:g}" if ratio.at_most is not None else wanted
        if name not in results["ratios"]:
            yield (ratio.meaning, "not measured", "", wanted, "", f"`{name}`")
            continue
        value, (low, high) = results["ratios"][name], results["ratio_spread"][name]
        verdict = _verdict(name, value).strip()
        yield (ratio.meaning, f"{value:.2f}", f"{low:.2f} – {high:.2f}", wanted, verdict, f"`{name}`")
    yield (
        "resident memory of an image worker",
        f"{results['rss_image_worker_mb']:.0f} MB",
        "",
        "≤ 700 MB",
        "",
        "",
    )
    yield (
        "from the start to the first correct vector",
        f"{results['cold_start_s']:.1f} s",
        "",
        "≤ 10 s",
        "",
        "",
    )


_CLOSED_HEAD = ("", "", "items/s", "p50 ms", "p95 ms", "p99 ms", "CPU ms per item", "failed", "load gen.")


def _closed_rows(results: Results, measurements: Sequence[str]) -> Iterator[Row]:
    for measurement in measurements:
        for server in SERVERS:
            figures = figures_of(results, server, measurement)
            if figures is None:
                continue
            low, high = (results[end][server][measurement]["rate"] for end in ("min", "max"))
            yield (
                measurement,
                NAMES[server],
                f"**{_number(figures['rate'])}** ({_number(low)} – {_number(high)})",
                *(_number(figures[f"p{q}_ms"]) for q in (50, 95, 99)),
                _number(figures["cpu_ms_per_item"]),
                _failures(results, server, measurement),
                f"{100 * figures['generator_cores']:.0f} %",
            )


def _open_rows(results: Results) -> Iterator[Row]:
    for kind, server, share in itertools.product(KINDS, SERVERS, SHARES):
        figures = figures_of(results, server, f"{kind}_open{share}")
        if figures is not None:
            yield (
                UNITS[kind],
                NAMES[server],
                f"{share} %",
                _number(figures["offered"]),
                _number(figures["rate"]),
                *(_number(figures[f"p{q}_ms"]) for q in (50, 95, 99)),
                _failures(results, server, f"{kind}_open{share}"),
            )


def _wire_rows(results: Results) -> Iterator[Row]:
    forms = {
        "image_c32": "a picture, base64 in JSON; vector in base64",
        "image_raw_c32": "a picture's bytes; vector as JSON numbers",
        "text_c32": "a text in JSON; vector in base64",
        "text_floats_c32": "a text in JSON; vector as JSON numbers",
        "similarity_1000_known_c1": "a picture and 1,000 labels; cosines and probabilities",
    }
    for measurement, form in forms.items():
        for server in SERVERS:
            figures = figures_of(results, server, measurement)
            if figures is not None:
                sizes = (figures["request_bytes"], figures["response_bytes"])
                yield (form, NAMES[server], *(f"{size / 1000:.1f} kB" for size in sizes))


def _in_process_rows(results: Results) -> Iterator[Row]:
    names = {
        ("sentence_transformers", "image"): "0.3 MP, batches of 32",
        ("sentence_transformers", "image_alone"): "0.3 MP, one at a time",
        ("sentence_transformers", "image_2mp"): "2 MP, batches of 8",
        ("sentence_transformers", "image_12mp"): "12 MP, batches of 8",
        ("sentence_transformers", "text_batch32"): "texts, batches of 32",
        ("sentence_transformers", "text_alone"): "texts, one at a time",
        ("openvino", "image"): "pixels, batch 1, throughput mode",
        ("openvino", "image_alone"): "pixels, batch 1, latency mode",
    }
    for (who, measurement), name in names.items():
        figures = figures_of(results, who, measurement)
        if figures is not None:
            yield (
                NAMES[who],
                name,
                _number(figures["rate"]),
                _number(figures["p50_ms"]),
                _number(figures["cpu_ms_per_item"]),
            )


def _floor_rows(results: Results) -> Iterator[Row]:
    floors = {
        "model_batch8": ("encoder, pictures/s at batch 8", "rate"),
        "pipeline_batch8": ("decode, resize and encode, pictures/s at batch 8", "rate"),
        "text_batch32": ("tokenise and encode, texts/s at batch 32", "rate"),
        "forward_batch1": ("encoder, one picture, ms", "p50_ms"),
        "text_alone": ("tokenise and encode one text, ms", "p50_ms"),
        "decode_0.3 MP": ("decode and resize 0.3 MP, ms", "p50_ms"),
        "decode_2 MP": ("decode and resize 2 MP, ms", "p50_ms"),
        "decode_12 MP": ("decode and resize 12 MP, ms", "p50_ms"),
    }
    for key, (name, figure) in floors.items():
        both = (figures_of(results, f"floors_{how}", key) for how in ("alone", "together"))
        yield (name, *(_number(figures[figure]) if figures else "" for figures in both))
    for key, name in (
        ("model_gflops", "encoder, GFLOP/s"),
        ("gemm_gflops", "its matrix products alone, GFLOP/s"),
        ("gemm_fp32_gflops", "the same products in fp32, GFLOP/s"),
    ):
        rates = (results["median"][f"floors_{how}"].get(key) for how in ("alone", "together"))
        yield (f"{name} of a core", *("" if rate is None else _number(rate) for rate in rates))


def _memory_rows(results: Results) -> Iterator[Row]:
    for server in SERVERS:
        memory, start = figures_of(results, server, "rss_mb"), figures_of(results, server, "start")
        if memory is not None and start is not None:
            yield (
                NAMES[server],
                *(
                    _number(memory[k]) if k in memory else ""
                    for k in ("clip_image", "clip_text", "clip_similarity")
                ),
                _number(memory["total"]),
                f"{start['cold_start_s']:.1f}",
                f"{start['ready_s']:.1f}",
            )
    for who in ("sentence_transformers", "openvino"):
        rss = results["median"].get(who, {}).get("rss_mb")
        if rss is not None:
            yield (f"{NAMES[who]}, in process", "", "", "", _number(rss), "", "")


def _table(head: Row, rows: Iterator[Row], caption: str = "") -> Iterator[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return
    if caption:
        yield f"{caption[0].upper()}{caption[1:]}:"
        yield ""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from lines
    yield ""


def _failures(results: Results, server: str, measurement: str) -> str:
    """How many requests of all rounds failed, and with what."""
    kinds: dict[str, int] = {}
    for measured in results["rounds"]:
        for kind, count in measured.get(server, {}).get(measurement, {}).get("errors", {}).items():
            kinds[kind] = kinds.get(kind, 0) + count
    return ", ".join(f"{count} × {kind}" for kind, count in kinds.items()) or "0"


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value <= 0 or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
