"""The table of docs/scale-estimate.md is the one that the command prints."""

from __future__ import annotations

from pathlib import Path

from scale.bulk.estimate import Assumptions, table


def test_document_has_the_computed_table() -> None:
    document = (Path(__file__).parents[3] / "docs" / "scale-estimate.md").read_text(encoding="utf-8")
    assert table(Assumptions()) in document


def test_gpu_rate_gives_gpu_hours() -> None:
    computed = table(Assumptions(gpu_images_per_s=1000, efficiency=1, decode_ms=10))
    # 10^6 pictures / 1,000 a second; 1,000 x 10 ms of decoding each second.
    assert "| GPU-hours | 0.28 | 28 | 2,778 |" in computed
    assert "| cores that decode for one GPU | 10 | 10 | 10 |" in computed
