"""The figures of `docs/performance.md`: what ratios reached, what was wanted, what the machine allows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from benchmarks.cpu_kinds import AMX, kind_of
from benchmarks.markdown import table
from benchmarks.ratios import AS_IF_AVX2, INT8_PEERS, ONNX_RUNTIME, OURS, PRODUCTS, RATIOS
from benchmarks.results_file import LATEST, Results, read
from benchmarks.tables import wanted

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
    earlier = [read(LATEST.parent / name) for name in EARLIER]
    latest = read(LATEST)
    machines = [*earlier, latest] if latest not in earlier else earlier
    head = ["", *(instructions_and_precision(results) for results in machines), "wanted with AMX"]

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

    return table(head, rows())


def instructions_and_precision(results: Results) -> str:
    """The newest instructions of a run's CPU, and the image encoder's precision there: `AMX-INT8, bf16`."""
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


# Rows of the table of int8, where they were measured.
INT8_ROWS = (
    *(f"{OURS} {precision}" for precision in ("fp32", "bf16", "fp16", "int8")),
    *(f"{OURS} {precision}{AS_IF_AVX2}" for precision in ("fp32", "fp16", "int8")),
    f"{ONNX_RUNTIME} fp32",
    *INT8_PEERS,
)


def int8() -> str:
    """The encoder alone in int8, beside other precisions, other engines and the bare products."""
    results = read(LATEST)
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
        f"{table(head, (row for row in rows if any(row[1:])))}\n"
        f"{table(ratios, of_bars)}\n"
        f"Median (least–most) of {len(loads)} rounds; {results['machine']['cpu']}, "
        f"{', '.join(results['machine']['instructions'])}; load average {min(loads):.1f} to "
        f"{max(loads):.1f}; "
        f"PyTorch {results['versions']['torch']}.\n"
    )
