"""Runs the fuzzers for a moment, from the corpus that the repository writes itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from reliability.corpus import write_seeds
from serving.local import ROOT

pytest.importorskip("atheris", reason="no atheris for this Python or platform")


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


@pytest.mark.parametrize("parser", ["image", "text", "images", "similarity", "door"])
def test_a_parser_gives_a_result_or_a_4xx(parser: str, seeds: Path, tmp_path: Path, seconds: int) -> None:
    result = subprocess.run(
        [
            # The peak memory that getrusage tells, which the fuzzer watches, counts the process that it was
            # forked from: a shell's in between, not all that these tests have loaded.
            *("sh", "-c", '"$@"; exit $?', "sh"),
            sys.executable,
            *("-W", "ignore", "-m", "tests.fuzz.harness", parser),
            *(f"-max_total_time={seconds}", "-timeout=60", "-rss_limit_mb=2048", "-max_len=40000"),
            *(f"-artifact_prefix={tmp_path}/", str(tmp_path), str(seeds)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Done" in result.stderr
