"""The ratios that count: what is divided by what in a round, and what is wanted of it on a kind of CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cpu_kinds import AMX, AVX2, VNNI
from benchmarks.engine_kinds import BATCH

# The engines of `benchmarks.engines`, as results name them.
OURS, ONNX_RUNTIME, OPENVINO = "clipserve", "ONNX Runtime", "OpenVINO"
ST_OPENVINO = "sentence-transformers, OpenVINO"
AS_IF_AVX2 = ", as if AVX2"
PRODUCTS = {
    "fp32": "bare products fp32",
    "int8": "bare products int8",
    "passes": "products int8 with their passes",
}
INT8_PEERS = (f"{ONNX_RUNTIME} int8", f"{OPENVINO} int8")

# What text-embeddings-inference takes around ONNX Runtime's forward pass.
ROUND_TRIP_MS = 1.0

# Nested: who -> what -> value.
Round = Mapping[str, Any]

# What we want: of every CPU, or of a kind; a kind that is not named has no bar.
Bars = float | Mapping[str, float] | None


@dataclass(frozen=True)
class Ratio:
    """A quotient of two figures of the same round.

    Attributes:
        meaning: what is divided by what.
        of: computes it; KeyError where a part was not measured.
        at_least, at_most: what we want.
    """

    meaning: str
    of: Callable[[Round], float]
    at_least: Bars = None
    at_most: Bars = None

    def bar(self, kind: str) -> dict[str, float]:
        """What is wanted of a kind of CPU: `at_least` or `at_most`, or nothing."""
        both = {"at_least": self.at_least, "at_most": self.at_most}
        found = {name: of.get(kind) if isinstance(of, Mapping) else of for name, of in both.items()}
        return {name: value for name, value in found.items() if value is not None}

    def holds(self, value: float, kind: str) -> bool:
        """Whether a value is as wanted of a kind of CPU."""
        bar = self.bar(kind)
        return bar.get("at_least", -math.inf) <= value <= bar.get("at_most", math.inf)


def _quotient(ours: Sequence[str], theirs: Sequence[str]) -> Callable[[Round], float]:
    return lambda measured: value(measured, *ours) / value(measured, *theirs)


def value(measured: Round, *path: str) -> float:
    """A figure of a round.

    Raises:
        KeyError: it was not measured.
    """
    found: Any = measured
    for key in path:
        found = found[key]
    return float(found)


def _pipeline_limit(measured: Round, floors: str = "floors_alone") -> float:
    """Pictures/s if every core did nothing but decode, resize and run our encoder."""
    seconds = value(measured, floors, "pipeline_batch8", "cpu_ms_per_item") / 1000
    return value(measured, "cores") / seconds


def _vs_pipeline_limit(floors: str) -> Callable[[Round], float]:
    return lambda measured: (
        value(measured, "clipserve", "image_c32", "rate") / _pipeline_limit(measured, floors)
    )


def _vs_decode_plus_forward(measured: Round) -> float:
    floor = value(measured, "floors_alone", "decode_0.3 MP", "p50_ms")
    floor += value(measured, "floors_alone", "forward_batch1", "p50_ms")
    return value(measured, "clipserve", "image_c1", "p50_ms") / floor


def _engine(modality: str, name: str, what: str, figure: str = "ms") -> tuple[str, ...]:
    return "engines", modality, name, what, figure


def _fp32_vs(modality: str, precision: str, batch: int) -> Callable[[Round], float]:
    """CPU time of one thread in packed fp32 ÷ in another precision."""
    fp32, other = (
        _engine(modality, f"{OURS} {name}", f"one_b{batch}", "cpu_ms") for name in ("fp32", precision)
    )
    return _quotient(fp32, other)


def _fastest_ms(engines: Round, names: Sequence[str], what: str) -> float:
    """Of the engines that were measured, the shortest time.

    Raises:
        KeyError: none was.
    """
    found = [value(engines, name, what, "ms") for name in names if what in engines.get(name, {})]
    if not found:
        raise KeyError(what)
    return min(found)


def _best_int8_peer_vs_ours(modality: str) -> Callable[[Round], float]:
    """Time of the fastest int8 peer ÷ ours on all cores, at batch 1 or 8: the lesser."""

    def of(measured: Round) -> float:
        engines = measured["engines"][modality]
        return min(
            _fastest_ms(engines, INT8_PEERS, what) / value(engines, f"{OURS} int8", what, "ms")
            for what in ("all_b1", "all_b8")
        )

    return of


def _text_p50_vs_onnxruntime(measured: Round) -> float:
    forward = value(measured, *_engine("text", f"{ONNX_RUNTIME} fp32", "all_sentences"))
    return value(measured, "clipserve", "text_c1", "p50_ms") / (forward + ROUND_TRIP_MS)


def _vs_fastest_openvino(measured: Round) -> float:
    names = [f"{OPENVINO} {precision}" for precision in ("fp32", "bf16")]
    ms = _fastest_ms(measured["engines"]["image"], names, "all_b8")
    return value(measured, "floors_together", "model_batch8", "rate") / (1000 * BATCH / ms)


def _one_vs_several(figure: str) -> Callable[[Round], float]:
    return _quotient(
        ("layouts", "one_worker", figure, "rate"), ("layouts", "several_workers", figure, "rate")
    )


def _workers_memory(measured: Round) -> float:
    one, several = (
        sum(value(measured, "layouts", which, f"{kind}_workers_mb") for kind in ("image", "text"))
        for which in ("one_worker", "several_workers")
    )
    return one / several


RATIOS: dict[str, Ratio] = {
    "image_http_c32_vs_infinity": Ratio(
        "pictures/s over HTTP, 32 clients: ours ÷ infinity-emb",
        _quotient(("clipserve", "image_c32", "rate"), ("infinity", "image_c32", "rate")),
        at_least={AMX: 4},
    ),
    "image_http_c32_vs_sentence_transformers": Ratio(
        "pictures/s: ours over HTTP, 32 clients ÷ sentence-transformers in process",
        _quotient(("clipserve", "image_c32", "rate"), ("sentence_transformers", "image", "rate")),
        at_least={AMX: 4},
    ),
    "image_http_c32_vs_pipeline_limit": Ratio(
        "pictures/s over HTTP, 32 clients ÷ (cores ÷ CPU time to decode, resize and run one in a batch)",
        _vs_pipeline_limit("floors_alone"),
        at_least=0.85,
    ),
    "image_http_c32_vs_pipeline_limit_all_cores_busy": Ratio(
        "the same, with that CPU time taken while all cores do it",
        _vs_pipeline_limit("floors_together"),
    ),
    "image_p50_c1_vs_infinity": Ratio(
        "p50 of a picture, 1 client: ours ÷ infinity-emb",
        _quotient(("clipserve", "image_c1", "p50_ms"), ("infinity", "image_c1", "p50_ms")),
        at_most={AVX2: 0.6, VNNI: 0.6, AMX: 0.5},
    ),
    "image_p50_c1_vs_decode_plus_forward": Ratio(
        "p50 of a picture, 1 client ÷ (decode + forward at batch 1 in process)",
        _vs_decode_plus_forward,
        at_most=1.25,
    ),
    "text_http_c32_vs_infinity": Ratio(
        "texts/s over HTTP, 32 clients, one per request: ours ÷ infinity-emb",
        _quotient(("clipserve", "text_c32", "rate"), ("infinity", "text_c32", "rate")),
        at_least={AMX: 6},
    ),
    "text_http_batch32_vs_in_process": Ratio(
        "texts/s over HTTP in requests of 32 ÷ the same in process on all cores",
        _quotient(("clipserve", "text_batch32_c8", "rate"), ("floors_together", "text_batch32", "rate")),
        at_least=0.8,
    ),
    "text_http_c32_vs_sentence_transformers": Ratio(
        "texts/s: ours over HTTP, 32 clients, one per request ÷ sentence-transformers in process, 32 at once",
        _quotient(("clipserve", "text_c32", "rate"), ("sentence_transformers", "text_batch32", "rate")),
    ),
    "image_model_vs_gemm_per_core": Ratio(
        "encoder alone, batch 8, one core: FLOP/s ÷ those of bare matrix products of its shapes",
        _quotient(("floors_alone", "model_gflops"), ("floors_alone", "gemm_gflops")),
        at_least=0.8,
    ),
    "image_model_vs_openvino": Ratio(
        "encoder alone, batch 8, one process a core ÷ OpenVINO's fastest in fp32 or bf16 on all cores",
        _vs_fastest_openvino,
        at_least=0.95,
    ),
    "similarity_1000_known_labels_vs_image": Ratio(
        "p50 at 1 client: similarity of a picture to 1,000 known labels ÷ its embedding",
        _quotient(("clipserve", "similarity_1000_known_c1", "p50_ms"), ("clipserve", "image_c1", "p50_ms")),
        at_most=1.2,
    ),
    "gemm_vs_fp32_gemm_per_core": Ratio(
        "bare matrix products of the encoder's shapes, one core: in its precision ÷ in fp32",
        _quotient(("floors_alone", "gemm_gflops"), ("floors_alone", "gemm_fp32_gflops")),
    ),
    "text_fp16_vs_fp32_b1": Ratio(
        "a lone text of 24 tokens, encoder alone, one thread: CPU time in fp32 ÷ with half weights",
        _fp32_vs("text", "fp16", 1),
        at_least={AVX2: 1.5},
    ),
    "image_fp16_vs_fp32_b1": Ratio(
        "a lone picture, likewise", _fp32_vs("image", "fp16", 1), at_least={AVX2: 1.3}
    ),
    "image_int8_vs_fp32_per_core_b8": Ratio(
        "8 pictures, encoder alone, one thread: CPU time in packed fp32 ÷ in int8",
        _fp32_vs("image", "int8", 8),
        at_least={AVX2: 2.0, VNNI: 3.0, AMX: 3.0},
    ),
    "image_int8_vs_fp32_per_core_b1": Ratio(
        "a lone picture, likewise",
        _fp32_vs("image", "int8", 1),
        at_least={AVX2: 2.2, VNNI: 2.5, AMX: 2.5},
    ),
    "text_int8_vs_fp32_per_core": Ratio(
        "a lone text of 24 tokens, likewise", _fp32_vs("text", "int8", 1), at_least=2.8
    ),
    "image_int8_vs_best_int8_peer": Ratio(
        "pictures, encoder alone, all cores: time of the fastest int8 peer, however near its vectors, ÷ of "
        "ours; the lesser of batch 1 and 8",
        _best_int8_peer_vs_ours("image"),
        at_least=1.0,
    ),
    "text_int8_vs_best_int8_peer": Ratio(
        "texts of 24 tokens, likewise", _best_int8_peer_vs_ours("text"), at_least=1.0
    ),
    "image_http_c32_int8_vs_infinity": Ratio(
        "pictures/s over HTTP, 32 clients: ours in int8 ÷ infinity-emb",
        _quotient(("clipserve_int8", "image_c32", "rate"), ("infinity", "image_c32", "rate")),
        at_least={AVX2: 2.3, VNNI: 4, AMX: 4},
    ),
    "text_http_c32_int8_vs_infinity": Ratio(
        "texts/s over HTTP, 32 clients, one per request: ours in int8 ÷ infinity-emb",
        _quotient(("clipserve_int8", "text_c32", "rate"), ("infinity", "text_c32", "rate")),
        at_least={AVX2: 4.5, VNNI: 6, AMX: 6},
    ),
    "text_p50_c1_vs_onnxruntime": Ratio(
        "p50 of a text, 1 client ÷ (ONNX Runtime's fp32 forward of the same texts on all cores + 1 ms)",
        _text_p50_vs_onnxruntime,
        at_most=1.0,
    ),
    "door_text_c32_vs_clip_text": Ratio(
        "texts/s over HTTP, 32 clients: ours by OpenAI's form ÷ by our own endpoint",
        _quotient(("clipserve", "door_text_c32", "rate"), ("clipserve", "text_c32", "rate")),
        at_least=0.97,
    ),
    "door_image_c32_vs_clip_image": Ratio(
        "pictures/s, likewise",
        _quotient(("clipserve", "door_image_c32", "rate"), ("clipserve", "image_c32", "rate")),
        at_least=0.97,
    ),
    "door_text_c32_vs_infinity": Ratio(
        "texts/s over HTTP, 32 clients, the same bodies: ours by OpenAI's form ÷ infinity-emb",
        _quotient(("clipserve", "door_text_c32", "rate"), ("infinity", "text_c32", "rate")),
    ),
    "door_image_c32_vs_infinity": Ratio(
        "pictures/s, likewise",
        _quotient(("clipserve", "door_image_c32", "rate"), ("infinity", "image_c32", "rate")),
    ),
    **{
        f"{kind}_c{clients}_one_worker_vs_several": Ratio(
            f"{unit}/s over HTTP, {clients} clients: one worker with all cores ÷ one a core",
            _one_vs_several(f"{kind}_c{clients}"),
            at_least=0.98,
        )
        for kind, unit in (("image", "pictures"), ("text", "texts"))
        for clients in (8, 32)
    },
    "rss_one_worker_vs_several": Ratio(
        "resident memory of the picture and text workers, likewise", _workers_memory, at_most=0.6
    ),
    "rss_image_fp16_vs_fp32": Ratio(
        "resident memory of a process with the image encoder: with half weights ÷ in fp32",
        _quotient(
            _engine("image", f"{OURS} fp16", "one_b8", "rss_mb"),
            _engine("image", f"{OURS} fp32", "one_b8", "rss_mb"),
        ),
        at_most={AVX2: 0.65},
    ),
    "image_pipeline_limit_vs_infinity": Ratio(
        "the ceiling here: (cores ÷ CPU time to decode, resize and run one in a batch) ÷ infinity-emb's "
        "pictures/s",
        lambda measured: _pipeline_limit(measured) / value(measured, "infinity", "image_c32", "rate"),
    ),
    "image_pipeline_limit_vs_sentence_transformers": Ratio(
        "the same ceiling ÷ sentence-transformers' pictures/s in process",
        lambda measured: (
            _pipeline_limit(measured) / value(measured, "sentence_transformers", "image", "rate")
        ),
    ),
    "text_in_process_vs_infinity": Ratio(
        "the ceiling here: texts/s of our encoder in process on all cores, 32 at once ÷ infinity-emb's",
        _quotient(("floors_together", "text_batch32", "rate"), ("infinity", "text_c32", "rate")),
    ),
    "image_http_c32_ray_serve_vs_torchserve": Ratio(
        "pictures/s over HTTP, 32 clients: ours on Ray Serve ÷ ours on TorchServe",
        _quotient(("ray_serve", "image_c32", "rate"), ("clipserve", "image_c32", "rate")),
        at_least=0.8,
    ),
    "image_p50_c1_ray_serve_vs_torchserve": Ratio(
        "p50 of a picture, 1 client, likewise",
        _quotient(("ray_serve", "image_c1", "p50_ms"), ("clipserve", "image_c1", "p50_ms")),
        at_most=1.2,
    ),
}
