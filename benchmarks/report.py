"""The page and the plots, from the results alone: `make bench-report`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.cpu_kinds import kind_of
from benchmarks.plots import KINDS, NAMES, SERVERS, SHARES, UNITS, engines_of, figures_of, write_plots
from benchmarks.results_file import Results
from benchmarks.tables import (
    ENGINES_HEAD,
    absolute_rows,
    closed_head,
    closed_rows,
    engine_rows,
    floor_rows,
    in_process_rows,
    layout_rows,
    memory_rows,
    open_rows,
    other_rows,
    precision_memory_rows,
    ratio_rows,
    table,
    verdict,
    wire_rows,
)

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "benchmarks"

MOST_NAMED = 8

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


def summary(results: Results) -> str:
    """The ratios as lines of text, for the terminal."""
    lines = []
    for name, ratio in results["ratios"].items():
        low, high = results["ratio_spread"][name]
        lines.append(f"{name:<48}{ratio:8.2f}  ({low:.2f} to {high:.2f})  {verdict(results, name)}")
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
        yield from table(("", "median", "min – max", "wanted", "", ""), ratio_rows(results, names), title)
    yield from table(("", "", "wanted"), absolute_rows(results), "In itself")
    yield "## Over HTTP"
    yield ""
    yield (
        "Closed loop: each client asks again as soon as it is answered. Medians of the rounds, rates with "
        "their spread. *CPU* is that of the server's whole process tree, at 32 clients."
    )
    yield ""
    yield "![throughput by clients](benchmarks/throughput.png)"
    yield ""
    yield from table(
        closed_head("pictures"), closed_rows(results, "image"), "Pictures of 0.3 MP, one per request"
    )
    yield from table(
        closed_head("texts"), closed_rows(results, "text"), "Texts in 40 languages, one per request"
    )
    yield "![latency percentiles](benchmarks/latency.png)"
    yield ""
    yield from table(
        ("", "", "items/s", "p50 ms", "p95 ms", "CPU ms per item", "failed"), other_rows(results), "Others"
    )
    yield from table(
        (
            *("", "pictures: p50 ms of 1 client", "pictures/s, 8 clients", "32"),
            *("texts: p50 ms of 1 client", "texts/s, 8 clients", "32", "their workers, MB"),
        ),
        layout_rows(results),
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
        yield from table(
            ("", "", "load", "offered/s", "answered/s", "p50 ms", "p95 ms", "p99 ms", "failed"),
            open_rows(results),
        )
    yield from table(("", "", "request", "answer"), wire_rows(results), "Bytes on the wire")
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
            yield from table(ENGINES_HEAD, engine_rows(results, kind), UNITS[kind].capitalize())
    yield "## In process"
    yield ""
    yield "sentence-transformers, with PyTorch, gets the JPEG files' bytes and all cores."
    yield ""
    yield from table(("", "items/s", "p50 ms of a call", "CPU ms per item"), in_process_rows(results))
    yield (
        "The floors: our encoders on one thread in one process, alone on the machine, and in as many "
        "processes as there are cores at once."
    )
    yield ""
    yield from table(("", "alone", "all cores at once"), floor_rows(results))
    yield "## Memory and cold start"
    yield ""
    yield (
        "Resident memory is the most that was seen after any measurement. Cold start: from the command to "
        "the first correct vector of a picture; all of it: until every endpoint answers its golden input."
    )
    yield ""
    yield from table(
        (
            *("", "image worker MB", "text worker MB", "similarity worker MB", "OpenAI's door MB"),
            *("everything MB", "cold start s", "all of it s"),
        ),
        memory_rows(results),
    )
    yield from table(
        ("", "with the image encoder, MB", "with the text encoder, MB"),
        precision_memory_rows(results),
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
