from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipserve import hardware
from clipserve.hardware import usable_cores


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        (None, 4),
        ("max 100000", 4),
        ("200000 100000", 2),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("6400000 100000", 4),
    ],
)
def test_cores_are_those_of_the_process_or_fewer_of_its_container(
    quota: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5, 6})
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores() == cores
