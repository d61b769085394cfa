"""The tables of `docs/benchmarks.md`: the rows of each, from the results."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from benchmarks.cpu_kinds import kind_of
from benchmarks.plots import CLIENTS, KINDS, NAMES, SERVERS, SHARES, UNITS, engines_of, figures_of
from benchmarks.ratios import OURS, RATIOS
from benchmarks.results_file import Results

Row = Sequence[str]

# Who answers over HTTP: the server, the form of the request, its name.
ASKED: tuple[tuple[str, str, str], ...] = (
    ("clipserve", "", NAMES["clipserve"]),
    ("clipserve", "door_", "the same, in OpenAI's form"),
    ("clipserve_int8", "", NAMES["clipserve_int8"]),
    ("ray_serve", "", NAMES["ray_serve"]),
    ("infinity", "", NAMES["infinity"]),
)

# Measured for themselves.
OTHERS = {
    "image_2mp_c8": "pictures of 2 MP, 8 clients",
    "image_12mp_c8": "pictures of 12 MP, 8 clients",
    "image_raw_c32": "pictures as bytes, answers as JSON numbers, 32 clients",
    "text_floats_c32": "texts, answers as JSON numbers, 32 clients",
    "text_batch32_c8": "32 texts in a request, 8 clients",
    "similarity_fresh_c1": "a picture against 8 labels that nobody sent before, 1 client",
    "similarity_repeated_c1": "a picture against 8 labels that come again",
    "similarity_1000_known_c1": "a picture against 1,000 known labels",
}


def verdict(results: Results, name: str) -> str:
    """`met` or `NOT MET`, of a ratio on a run's machine; empty where it has no bar or was not measured."""
    ratio, kind = RATIOS[name], kind_of(results["machine"])
    if name not in results["ratios"] or not ratio.bar(kind):
        return ""
    return "met" if ratio.holds(results["ratios"][name], kind) else "NOT MET"


def wanted(name: str, kind: str) -> str:
    """What is wanted of a ratio on a kind of CPU, with its sign; empty where nothing is."""
    bar = RATIOS[name].bar(kind)
    signs = {"at_least": "≥", "at_most": "≤"}
    return "".join(f"{signs[which]} {value:g}" for which, value in bar.items())


def ratio_rows(results: Results, names: Sequence[str]) -> Iterator[Row]:
    """Each ratio: its meaning, median, spread, what is wanted, whether that is met, its name."""
    for name in names:
        meaning, bar = RATIOS[name].meaning, wanted(name, kind_of(results["machine"]))
        if name not in results["ratios"]:
            yield (meaning, "not measured", "", bar, "", f"`{name}`")
            continue
        value, (low, high) = results["ratios"][name], results["ratio_spread"][name]
        yield (
            *(meaning, f"{value:.2f}", f"{low:.2f} – {high:.2f}"),
            *(bar, verdict(results, name), f"`{name}`"),
        )


def absolute_rows(results: Results) -> Iterator[Row]:
    """Memory and start of our server, beside what is wanted of every machine."""
    encoder = results["settings"]["encoders"]["image"].rpartition("-")[2]
    memory = f"{results['rss_image_worker_mb']:.0f} MB"
    yield (f"resident memory of an image worker in {encoder}", memory, "≤ 700 MB in bf16")
    int8 = figures_of(results, "clipserve_int8", "rss_mb")
    if int8 is not None:
        yield ("the same in int8", f"{int8['clip_image']:.0f} MB", "≤ 450 MB")
    yield ("from the start to the first correct vector", f"{results['cold_start_s']:.1f} s", "≤ 10 s")


def closed_head(unit: str) -> Row:
    """Of `closed_rows`; `unit` is what is counted per second."""
    return (
        *("", "p50 ms of 1 client", f"{unit}/s, 8 clients", "32 clients", "p50 ms", "p99 ms"),
        *("CPU ms per item", "failed"),
    )


def closed_rows(results: Results, kind: str) -> Iterator[Row]:
    """Each server under the closed loops of a kind of request: latency in ms, items/s, CPU, failures."""
    for server, form, name in ASKED:
        one, eight, many = (figures_of(results, server, f"{form}{kind}_c{n}") for n in CLIENTS)
        if many is None:
            continue
        yield (
            name,
            *(_number(one["p50_ms"]) if one else "",),
            *(_rate(results, server, f"{form}{kind}_c8") if eight else "",),
            f"**{_rate(results, server, f'{form}{kind}_c32')}**",
            *(_number(many[f"p{q}_ms"]) for q in (50, 99)),
            _number(many["cpu_ms_per_item"]),
            _failures(results, server, [f"{form}{kind}_c{n}" for n in CLIENTS]),
        )


def _rate(results: Results, server: str, measurement: str) -> str:
    """Items per second, and the spread of the rounds."""
    low, rate, high = (results[end][server][measurement]["rate"] for end in ("min", "median", "max"))
    return _number(rate) if low == high else f"{_number(rate)} ({_number(low)} – {_number(high)})"


def other_rows(results: Results) -> Iterator[Row]:
    """Each of `OTHERS` by server: items/s, latency in ms, CPU time of an item, failures."""
    for measurement, name in OTHERS.items():
        for server in SERVERS:
            figures = figures_of(results, server, measurement)
            if figures is not None:
                yield (
                    name,
                    NAMES[server],
                    _rate(results, server, measurement),
                    *(_number(figures[f"p{q}_ms"]) for q in (50, 95)),
                    _number(figures["cpu_ms_per_item"]),
                    _failures(results, server, [measurement]),
                )


def layout_rows(results: Results) -> Iterator[Row]:
    """One worker with all cores and one a core: latency in ms and items/s of pictures and texts, MB."""
    for which, name in (("one_worker", "one worker with all"), ("several_workers", "a worker a core")):
        layout = figures_of(results, "layouts", which)
        if layout is None:
            continue
        cells = []
        for kind in KINDS:
            for clients, figure in zip(CLIENTS, ("p50_ms", "rate", "rate"), strict=True):
                figures = layout.get(f"{kind}_c{clients}")
                cells.append("" if figures is None else _number(figures[figure]))
        megabytes = sum(layout[f"{kind}_workers_mb"] for kind in KINDS)
        yield (name, *cells, _number(megabytes))


# Of `engine_rows`.
ENGINES_HEAD = (
    *("", "one thread, CPU ms: 1", "8", "all cores, ms: 1", "8"),
    *("cosine", "moved", "how"),
)


def engine_rows(results: Results, kind: str) -> Iterator[Row]:
    """Each engine of a kind of encoder: ms of a pass, how near its vectors are, how it ran or why not."""
    for name, figures in engines_of(results, kind).items():
        if "note" in figures:
            yield (name, "not measured", "", "", "", "", "", str(figures["note"]))
            continue
        fidelity = figures.get("fidelity", {})
        yield (
            name,
            *(_time(figures, f"one_b{batch}", "cpu_ms") for batch in (1, 8)),
            *(_time(figures, f"all_b{batch}", "ms") for batch in (1, 8)),
            f"{1 - fidelity['cosine_distance']:.7f}" if fidelity else "",
            f"{fidelity['moved_by_neighbours']:.1g}" if fidelity else "",
            figures.get("all_settings", figures.get("one_settings", "")),
        )


def _time(figures: dict[str, dict[str, float]], what: str, figure: str) -> str:
    return _number(figures[what][figure]) if what in figures else ""


def open_rows(results: Results) -> Iterator[Row]:
    """Each open loop by server: its load, items/s offered and answered, latency in ms, failures."""
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
                _failures(results, server, [f"{kind}_open{share}"]),
            )


def wire_rows(results: Results) -> Iterator[Row]:
    """Bytes of a request and of its answer, in the forms that a server was asked in."""
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


def in_process_rows(results: Results) -> Iterator[Row]:
    """sentence-transformers in process: items/s, ms of a call, CPU time of an item."""
    names = {
        "image": "0.3 MP, batches of 32",
        "image_alone": "0.3 MP, one at a time",
        "image_2mp": "2 MP, batches of 8",
        "image_12mp": "12 MP, batches of 8",
        "text_batch32": "texts, batches of 32",
        "text_alone": "texts, one at a time",
    }
    for measurement, name in names.items():
        figures = figures_of(results, "sentence_transformers", measurement)
        if figures is not None:
            yield (name, *(_number(figures[key]) for key in ("rate", "p50_ms", "cpu_ms_per_item")))


def floor_rows(results: Results) -> Iterator[Row]:
    """What our encoders and their products reach in process, alone and on all cores at once."""
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


def memory_rows(results: Results) -> Iterator[Row]:
    """Resident memory of each server and of its workers in MB; seconds until it is ready."""
    for server in (*SERVERS, "clipserve_other_layout"):
        memory, start = figures_of(results, server, "rss_mb"), figures_of(results, server, "start")
        if memory is not None and start is not None:
            endpoints = ("clip_image", "clip_text", "clip_similarity", "v1")
            yield (
                NAMES[server],
                *(_number(memory[key]) if key in memory else "" for key in endpoints),
                _number(memory["total"]),
                f"{start['cold_start_s']:.1f}",
                f"{start['ready_s']:.1f}",
            )


def precision_memory_rows(results: Results) -> Iterator[Row]:
    """Resident memory in MB of a process with one of our encoders, by precision."""
    of = {kind: engines_of(results, kind) for kind in KINDS}
    for name in of["image"]:
        if name.startswith(f"{OURS} ") and "all_b8" in of["image"][name]:
            cells = (of[kind].get(name, {}).get("one_b8", {}).get("rss_mb") for kind in KINDS)
            yield (name.removeprefix(f"{OURS} "), *("" if mb is None else _number(mb) for mb in cells))


def table(head: Row, rows: Iterator[Row], caption: str = "") -> Iterator[str]:
    """Lines of Markdown, none where there are no rows; `caption` is put before them."""
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


def _failures(results: Results, server: str, measurements: Sequence[str]) -> str:
    """How many requests of all rounds failed, and with what."""
    kinds: dict[str, int] = {}
    for measured, measurement in itertools.product(results["rounds"], measurements):
        for kind, count in measured.get(server, {}).get(measurement, {}).get("errors", {}).items():
            kinds[kind] = kinds.get(kind, 0) + count
    return ", ".join(f"{count} × {kind}" for kind, count in kinds.items()) or "0"


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value <= 0 or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
