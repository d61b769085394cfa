"""The page and the plots, from the results alone: `make bench-report`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.cpu_kinds import kind_of
from benchmarks.plots import (
    CLIENTS,
    KINDS,
    NAMES,
    SERVERS,
    SHARES,
    UNITS,
    engines_of,
    figures_of,
    write_plots,
)
from benchmarks.ratios import OURS, RATIOS
from benchmarks.results_file import Results

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "benchmarks"

MOST_NAMED = 8

Row = Sequence[str]

# What the ratios are about, each in one table.
GROUPS: dict[str, Sequence[str]] = {
    "Beside other servers": (
        "image_http_c32_vs_infinity",
        "text_http_c32_vs_infinity",
        "image_p50_c1_vs_infinity",
        "image_http_c32_vs_sentence_transformers",
        "text_http_c32_vs_sentence_transformers",
        "text_p50_c1_vs_onnxruntime",
        "door_text_c32_vs_infinity",
        "door_image_c32_vs_infinity",
    ),
    "Half weights and int8": (
        "text_fp16_vs_fp32_b1",
        "image_fp16_vs_fp32_b1",
        "rss_image_fp16_vs_fp32",
        "image_int8_vs_fp32_per_core_b8",
        "image_int8_vs_fp32_per_core_b1",
        "text_int8_vs_fp32_per_core",
        "image_int8_vs_best_int8_peer",
        "text_int8_vs_best_int8_peer",
        "image_http_c32_int8_vs_infinity",
        "text_http_c32_int8_vs_infinity",
    ),
    "Beside ourselves": (
        "door_text_c32_vs_clip_text",
        "door_image_c32_vs_clip_image",
        "image_c8_one_worker_vs_several",
        "image_c32_one_worker_vs_several",
        "text_c8_one_worker_vs_several",
        "text_c32_one_worker_vs_several",
        "rss_one_worker_vs_several",
        "similarity_1000_known_labels_vs_image",
        "image_http_c32_ray_serve_vs_torchserve",
        "image_p50_c1_ray_serve_vs_torchserve",
    ),
    "Beside what the machine allows": (
        "image_http_c32_vs_pipeline_limit",
        "image_http_c32_vs_pipeline_limit_all_cores_busy",
        "image_p50_c1_vs_decode_plus_forward",
        "text_http_batch32_vs_in_process",
        "image_model_vs_gemm_per_core",
        "image_model_vs_openvino",
        "gemm_vs_fp32_gemm_per_core",
        "image_pipeline_limit_vs_infinity",
        "image_pipeline_limit_vs_sentence_transformers",
        "text_in_process_vs_infinity",
    ),
}

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


def summary(results: Results) -> str:
    """The ratios as lines of text, for the terminal."""
    lines = []
    for name, ratio in results["ratios"].items():
        low, high = results["ratio_spread"][name]
        lines.append(f"{name:<48}{ratio:8.2f}  ({low:.2f} to {high:.2f})  {_verdict(results, name)}")
    lines += [
        f"{'rss_image_worker_mb':<48}{results['rss_image_worker_mb']:8.0f}",
        f"{'cold_start_s':<48}{results['cold_start_s']:8.1f}",
        *(f"not measured: {NAMES.get(peer, peer)}: {note}" for peer, note in _missing(results)),
        *(
            f"not measured: {name}, {kind}: {figures['note']}"
            for kind in KINDS
            for name, figures in engines_of(results, kind).items()
            if "note" in figures
        ),
        *(f"disturbed by other programs: {name}" for name in results["quiet"]["disturbed"]),
        f"{results['settings']['rounds']} rounds in {results['took_s'] / 60:.1f} minutes",
    ]
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
    yield (
        "Each is a quotient of figures of the same round; the median of the rounds, and their spread. What "
        f"is wanted is what the project has set for a CPU of this kind ({kind_of(results['machine'])})."
    )
    yield ""
    for title, names in GROUPS.items():
        yield from _table(("", "median", "min – max", "wanted", "", ""), _ratio_rows(results, names), title)
    yield from _table(("", "", "wanted"), _absolute_rows(results), "In itself")
    yield "## Over HTTP"
    yield ""
    yield (
        "Closed loop: each client asks again as soon as it is answered. Medians of the rounds, rates with "
        "their spread. *CPU* is that of the server's whole process tree, at 32 clients."
    )
    yield ""
    yield "![throughput by clients](benchmarks/throughput.png)"
    yield ""
    yield from _table(
        _head("pictures"), _closed_rows(results, "image"), "Pictures of 0.3 MP, one per request"
    )
    yield from _table(_head("texts"), _closed_rows(results, "text"), "Texts in 40 languages, one per request")
    yield "![latency percentiles](benchmarks/latency.png)"
    yield ""
    yield from _table(
        ("", "", "items/s", "p50 ms", "p95 ms", "CPU ms per item", "failed"), _other_rows(results), "Others"
    )
    yield from _table(
        (
            *("", "pictures: p50 ms of 1 client", "pictures/s, 8 clients", "32"),
            *("texts: p50 ms of 1 client", "texts/s, 8 clients", "32", "their workers, MB"),
        ),
        _layout_rows(results),
        "The same cores as one worker with all of them, and as one a core",
    )
    if any(figures_of(results, s, f"{k}_open{share}") for s in SERVERS for k in KINDS for share in SHARES):
        yield "### Open loop"
        yield ""
        yield (
            "Pictures, or single texts, are due at random moments (Poisson) at a share of the rate that the "
            "same server reached with 32 clients; latency counts from the moment when a request was due. At "
            "110 % every queue grows for as long as the load lasts. One round."
        )
        yield ""
        yield "![latency under open load](benchmarks/open-loop.png)"
        yield ""
        yield from _table(
            ("", "", "load", "offered/s", "answered/s", "p50 ms", "p95 ms", "p99 ms", "failed"),
            _open_rows(results),
        )
    yield from _table(("", "", "request", "answer"), _wire_rows(results), "Bytes on the wire")
    yield "## Encoders alone"
    yield ""
    if "engines" in results["median"]:
        yield (
            "Ready pixels and tokens (24 of a text), nothing is decoded; each engine in a process of its "
            "own, in turns. One thread: CPU time; all cores: by the clock. *Cosine*: the least to what "
            "sentence-transformers gives in fp32; *moved*: the most that a batch of eight changes a number "
            "of a vector. ONNX Runtime's int8 is `quantize_dynamic` of our `.onnx`, weights by channel; "
            "OpenVINO's is NNCF's `quantize` of it for transformers, with its own settings. Where OpenVINO "
            "has eight in flight, that was faster than one batch. sentence-transformers gets pictures and "
            "texts as they are."
        )
        yield ""
        yield "![time of an item by engine](benchmarks/engines.png)"
        yield ""
        for kind in KINDS:
            yield from _table(_ENGINES_HEAD, _engine_rows(results, kind), UNITS[kind].capitalize())
    yield "## In process"
    yield ""
    yield "sentence-transformers, with PyTorch, gets the JPEG files' bytes and all cores."
    yield ""
    yield from _table(("", "items/s", "p50 ms of a call", "CPU ms per item"), _in_process_rows(results))
    yield (
        "The floors: our encoders on one thread in one process, alone on the machine, and in as many "
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
            *("", "image worker MB", "text worker MB", "similarity worker MB", "OpenAI's door MB"),
            *("everything MB", "cold start s", "all of it s"),
        ),
        _memory_rows(results),
    )
    yield from _table(
        ("", "with the image encoder, MB", "with the text encoder, MB"),
        _precision_memory_rows(results),
        "A process of its own with one encoder, as a worker loads it, after batches of eight",
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
    )
    quiet = results.get("quiet")
    if quiet is not None:
        yield (
            f"* a measurement during which other programs took more than {quiet['bound_cores']:g} cores is "
            f"repeated: of {quiet['measured']}, {quiet['repeated']} repetitions; "
            f"{len(quiet['disturbed'])} are disturbed all the same" + _named(quiet["disturbed"])
        )
    for peer, note in _missing(results):
        yield f"* **{NAMES.get(peer, peer)} was not measured**: {note}"
    yield ""


def _named(disturbed: Sequence[str]) -> str:
    """Which, if they are few."""
    if not disturbed:
        return ""
    some = ", ".join(f"`{name}`" for name in dict.fromkeys(disturbed[:MOST_NAMED]))
    return f": {some}{', …' if len(disturbed) > MOST_NAMED else ''}"


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


def _verdict(results: Results, name: str) -> str:
    ratio, kind = RATIOS[name], kind_of(results["machine"])
    if name not in results["ratios"] or not ratio.bar(kind):
        return ""
    return "met" if ratio.holds(results["ratios"][name], kind) else "NOT MET"


def wanted(name: str, kind: str) -> str:
    """What is wanted of a ratio on a kind of CPU, with its sign; empty where nothing is."""
    bar = RATIOS[name].bar(kind)
    signs = {"at_least": "≥", "at_most": "≤"}
    return "".join(f"{signs[which]} {value:g}" for which, value in bar.items())


def _ratio_rows(results: Results, names: Sequence[str]) -> Iterator[Row]:
    for name in names:
        meaning, bar = RATIOS[name].meaning, wanted(name, kind_of(results["machine"]))
        if name not in results["ratios"]:
            yield (meaning, "not measured", "", bar, "", f"`{name}`")
            continue
        value, (low, high) = results["ratios"][name], results["ratio_spread"][name]
        yield (
            *(meaning, f"{value:.2f}", f"{low:.2f} – {high:.2f}"),
            *(bar, _verdict(results, name), f"`{name}`"),
        )


def _absolute_rows(results: Results) -> Iterator[Row]:
    encoder = results["settings"]["encoders"]["image"].rpartition("-")[2]
    memory = f"{results['rss_image_worker_mb']:.0f} MB"
    yield (f"resident memory of an image worker in {encoder}", memory, "≤ 700 MB in bf16")
    int8 = figures_of(results, "clipserve_int8", "rss_mb")
    if int8 is not None:
        yield ("the same in int8", f"{int8['clip_image']:.0f} MB", "≤ 450 MB")
    yield ("from the start to the first correct vector", f"{results['cold_start_s']:.1f} s", "≤ 10 s")


def _head(unit: str) -> Row:
    return (
        *("", "p50 ms of 1 client", f"{unit}/s, 8 clients", "32 clients", "p50 ms", "p99 ms"),
        *("CPU ms per item", "failed"),
    )


def _closed_rows(results: Results, kind: str) -> Iterator[Row]:
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


def _other_rows(results: Results) -> Iterator[Row]:
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


def _layout_rows(results: Results) -> Iterator[Row]:
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


_ENGINES_HEAD = (
    *("", "one thread, CPU ms: 1", "8", "all cores, ms: 1", "8"),
    *("cosine", "moved", "how"),
)


def _engine_rows(results: Results, kind: str) -> Iterator[Row]:
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
                _failures(results, server, [f"{kind}_open{share}"]),
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


def _precision_memory_rows(results: Results) -> Iterator[Row]:
    of = {kind: engines_of(results, kind) for kind in KINDS}
    for name in of["image"]:
        if name.startswith(f"{OURS} ") and "all_b8" in of["image"][name]:
            cells = (of[kind].get(name, {}).get("one_b8", {}).get("rss_mb") for kind in KINDS)
            yield (name.removeprefix(f"{OURS} "), *("" if mb is None else _number(mb) for mb in cells))


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
