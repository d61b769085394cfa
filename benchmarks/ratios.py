"""From the values of each round to medians and ratios: what `latest.json` holds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import PeerError

LATEST = Path(__file__).parent / "results" / "latest.json"

# Nested: who -> what -> value.
Round = Mapping[str, Any]
Results = dict[str, Any]

DIGITS = 5


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
    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a value is as wanted."""
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )


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


def _fp32_vs_half_weights(modality: str) -> Callable[[Round], float]:
    both = ("floors_alone", "half_weights", modality)
    return _quotient((*both, "fp32_cpu_ms"), (*both, "fp16_cpu_ms"))


RATIOS: dict[str, Ratio] = {
    "image_http_c32_vs_infinity": Ratio(
        "pictures/s over HTTP, 32 clients: ours ÷ infinity-emb",
        _quotient(("clipserve", "image_c32", "rate"), ("infinity", "image_c32", "rate")),
        at_least=4,
    ),
    "image_http_c32_vs_sentence_transformers": Ratio(
        "pictures/s: ours over HTTP, 32 clients ÷ sentence-transformers in process",
        _quotient(("clipserve", "image_c32", "rate"), ("sentence_transformers", "image", "rate")),
        at_least=4,
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
        at_most=0.5,
    ),
    "image_p50_c1_vs_decode_plus_forward": Ratio(
        "p50 of a picture, 1 client ÷ (decode + forward at batch 1 in process)",
        _vs_decode_plus_forward,
        at_most=1.25,
    ),
    "text_http_c32_vs_infinity": Ratio(
        "texts/s over HTTP, 32 clients, one per request: ours ÷ infinity-emb",
        _quotient(("clipserve", "text_c32", "rate"), ("infinity", "text_c32", "rate")),
        at_least=6,
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
        "encoder alone, batch 8, one process a core ÷ OpenVINO in throughput mode on all cores",
        _quotient(("floors_together", "model_batch8", "rate"), ("openvino", "image", "rate")),
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
        "a lone text, encoder alone, one thread: CPU time in fp32 ÷ with half weights",
        _fp32_vs_half_weights("text"),
        at_least=1.5,
    ),
    "image_fp16_vs_fp32_b1": Ratio(
        "a lone picture, likewise",
        _fp32_vs_half_weights("image"),
        at_least=1.3,
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
    ),
}


def summarise(rounds: Sequence[Round]) -> Results:
    """Medians, spreads and ratios of all rounds.

    Returns:
        `median`, `min` and `max`, each of the shape of a round; `ratios`, and `ratio_spread` as `[min, max]`.
        A ratio's median is over the rounds' own ratios; one with a part that was not measured is left out.
    """
    results: Results = {
        name: _rounded(_fold(rounds, fold))
        for name, fold in (("median", statistics.median), ("min", min), ("max", max))
    }
    results["ratios"], results["ratio_spread"] = {}, {}
    for name, ratio in RATIOS.items():
        values = []
        for measured in rounds:
            try:
                values.append(ratio.of(measured))
            except (KeyError, ZeroDivisionError):
                continue
        if values:
            results["ratios"][name] = _rounded(statistics.median(values))
            results["ratio_spread"][name] = _rounded([min(values), max(values)])
    return results


def _fold(rounds: Sequence[Any], fold: Callable[[Sequence[float]], float]) -> Any:
    """Folds the numbers of several equally shaped trees; what is no number is taken from the last one."""
    if all(isinstance(tree, Mapping) for tree in rounds):
        keys = dict.fromkeys(key for tree in rounds for key in tree)
        return {key: _fold([tree[key] for tree in rounds if key in tree], fold) for key in keys}
    if all(isinstance(leaf, int | float) for leaf in rounds):
        return fold(rounds)
    return rounds[-1]


def _rounded(tree: Any) -> Any:
    """Floats to a few significant digits: more would only be noise."""
    if isinstance(tree, Mapping):
        return {key: _rounded(branch) for key, branch in tree.items()}
    if isinstance(tree, list):
        return [_rounded(branch) for branch in tree]
    if isinstance(tree, float) and tree and math.isfinite(tree):
        return round(tree, max(0, DIGITS - 1 - math.floor(math.log10(abs(tree)))))
    return tree


def write(results: Results, path: Path) -> None:
    """Writes results as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    half.write_text(json.dumps(_rounded(results), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    half.replace(path)


def read(path: Path) -> Results:
    """Reads what `write` wrote.

    Raises:
        PeerError: there is no such file.
    """
    try:
        found: Results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PeerError(f"{path}: no results ({error}); run 'make bench'") from error
    return found
