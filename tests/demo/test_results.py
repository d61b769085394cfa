"""demo/results.json has what was measured, demo/RESULTS.md is written from it."""

from __future__ import annotations

import json

import numpy as np

from demo.languages import LanguageResult, mean, pool
from demo.results import DATA, RESULTS, collect, languages_of, report


def result(name: str, missed: int, scenes: int) -> LanguageResult:
    """A language whose first `missed` captions found another picture."""
    ranks = np.zeros(scenes, np.int64)
    ranks[:missed] = 7
    misses = [f"caption {i} -> 1-cat-snow" for i in range(missed)]
    return LanguageResult(name, (0.75, 1.0, 0.5), ranks, 0.25, 0.125, misses)


def test_the_page_is_of_the_results() -> None:
    assert RESULTS.read_text(encoding="utf-8") == report(json.loads(DATA.read_text(encoding="utf-8")))


def test_each_miss_is_in_the_data_and_counted_on_the_page() -> None:
    data = json.loads(DATA.read_text(encoding="utf-8"))
    by_name = {summary.name: summary for summary in languages_of(data)}
    assert len(by_name) == 40
    for name, misses in data["misses"].items():
        assert len(misses) == round((1 - by_name[name].recall_at_1) * data["scenes"]), name
        assert all(" -> " in miss for miss in misses), name


def test_what_is_measured_is_what_is_written() -> None:
    scenes = pool(3)
    fp32 = {"en": result("English", 20, len(scenes)), "hu": result("Hungarian", 60, len(scenes))}
    bf16 = {"en": result("English", 20, len(scenes)), "hu": result("Hungarian", 70, len(scenes))}
    data = json.loads(json.dumps(collect(fp32, bf16, scenes, 3)))
    english, hungarian = languages_of(data)
    assert (english.recall_at_1, hungarian.recall_at_1) == (0.9, 0.7)
    assert (english.recall_at_5, english.example, english.unknown_share) == (0.9, 0.5, 0.125)
    # The held-out combinations come first in the pool.
    held_out = sum(scene.held_out for scene in scenes)
    assert english.held_out_recall_at_1 == round(1 - 20 / held_out, 4)
    assert mean([english, hungarian]).recall_at_1 == 0.8
    assert data["bf16"] == {"mean_change": -0.025, "largest_change": -0.05, "largest_change_of": "Hungarian"}
    assert [len(misses) for misses in data["misses"].values()] == [20, 60]
    page = report(data)
    assert "| Hungarian             |  70.0% |" in page
    assert "- Hungarian: R@1 70.0%, should be >= 80%" in page
    assert "change R@1 by -2.50 points on average; the largest change of one language is -5.0 points" in page
    assert f"80 of {2 * len(scenes)} captions." in page
