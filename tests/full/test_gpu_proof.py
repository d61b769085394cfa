"""The stage of `make gpu-proof` that a dry run leaves out and a CPU can run: TorchServe itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu import proofs, served
from benchmarks.gpu.plan import CLIP, Plan


@pytest.mark.full
@pytest.mark.server
def test_its_archives_served_by_torchserve(tmp_path: Path) -> None:
    plan = Plan(True, tmp_path)
    for stage in (proofs.checkpoints, proofs.export):
        for name, step in stage(plan):
            if CLIP in name:
                step()
    served.check_torchserve()
    found = served.served_once(plan, "fp32")
    assert found["image_min_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert found["text_min_cosine"] == pytest.approx(1.0, abs=1e-5)
