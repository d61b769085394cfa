"""What `make bench-search` keeps is what docs/search.md is written from."""

from __future__ import annotations

import json
from pathlib import Path

from search import benchmark


def test_what_is_measured_is_kept_in_its_place(tmp_path: Path) -> None:
    results = tmp_path / "search.json"
    before = [{"rows": 300, "kind": "uniform"}, {"rows": 100_000, "kind": "uniform"}]
    results.write_text(json.dumps(before))
    arguments = ["--rows", "300", "--kind", "uniform", "--folder", str(tmp_path / "table")]
    assert benchmark.main([*arguments, "--results", str(results)]) == 0
    measured, kept = json.loads(results.read_text())
    assert kept == before[1]
    assert (measured["rows"], measured["kind"], measured["index"]) == (300, "uniform", False)
    # Every figure that the page shows.
    shown = json.loads(benchmark.RESULTS.read_text(encoding="utf-8"))
    assert all(set(of) <= set(measured) for of in shown)
