"""From the values of each round to medians, spreads and ratios, in a file: what `latest.json` holds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.child import PeerError
from benchmarks.cpu_kinds import kind_of
from benchmarks.ratios import RATIOS, Round

LATEST = Path(__file__).parent / "results" / "latest.json"

DIGITS = 5

# See `summarise`; and beside it what `benchmarks.compare` knows of the run.
Results = dict[str, Any]


def summarise(rounds: Sequence[Round], machine: Mapping[str, Any]) -> Results:
    """Medians, spreads and ratios of all rounds.

    Returns:
        `median`, `min` and `max`, each of the shape of a round; `ratios`, and `ratio_spread` as `[min, max]`;
        `bars`: what is wanted of each on this kind of CPU. A ratio's median is over the rounds' own ratios;
        one with a part that was not measured is left out.
    """
    results: Results = {
        name: _rounded(_fold(rounds, fold))
        for name, fold in (("median", statistics.median), ("min", min), ("max", max))
    }
    kind = kind_of(machine)
    results["cpu_kind"] = kind
    results["bars"] = {name: bar for name, ratio in RATIOS.items() if (bar := ratio.bar(kind))}
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
