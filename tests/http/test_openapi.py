"""docs/openapi.json as schemathesis reads it: requests of its own making, no 5xx, no answer outside it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from clipserve import openapi
from serving.local import ROOT
from tests.http.api import Api

PYTHON = ROOT / ".venv-clients" / "bin" / "python"
PAGE = ROOT / "docs" / "openapi.json"
FRONTEND = Path(__file__).parent / "clients" / "frontend.py"

pytestmark = pytest.mark.skipif(not PYTHON.is_file(), reason="no .venv-clients; run 'make test-clients'")

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
]
# Of a run's fuzzing phase, for each operation: a run takes its time to start, and is silent until its end.
EXAMPLES = range(25, 251)


def test_it_is_openapi_3_1() -> None:
    subprocess.run([PYTHON, "-m", "openapi_spec_validator", "--schema", "3.1", PAGE], check=True)


def test_answers_are_those_of_the_document(api: Api, pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """As many cases as `--cases` says at least, in runs with the seeds 1, 2, 3 …"""
    cases = pytestconfig.getoption("--cases")
    ray = pytestconfig.getoption("--server") == "ray"
    generated = seed = faults = 0
    while generated < cases:
        seed += 1
        examples = min(max((cases - generated) // 4, EXAMPLES[0]), EXAMPLES[-1])
        told = run(api, ray, seed, examples, tmp_path)
        assert told["complete"]
        assert told["test_cases"]["generated"] > 0
        assert told["test_cases"]["errored"] == 0
        generated += told["test_cases"]["generated"]
        faults += told["filtered"]
        print(
            f"seed {seed}: {generated} cases, {faults} a form that TorchServe's frontend cannot read",
            flush=True,
        )
    assert not (ray and faults)


def run(api: Api, ray: bool, seed: int, examples: int, folder: Path) -> dict[str, Any]:
    """One run of schemathesis: what it reports."""
    report = folder / f"{seed}.json"
    # What the document has an example or a limit for is the same in every run.
    phases = "examples,coverage,fuzzing,stateful" if seed == 1 else "fuzzing,stateful"
    command = [
        *(PYTHON, "-m", "schemathesis.cli", "run", PAGE, "--url", api.url),
        *([] if ray else ["--include-tag", openapi.BOTH]),
        *("--checks", ",".join(CHECKS), "--phases", phases, "--mode", "all"),
        *("--max-examples", examples, "--seed", seed, "--generation-database", "none"),
        *("--header", f"Authorization: {api.bearer()['Authorization']}", "--no-color"),
        *("--report-json-path", report),
    ]
    environment = os.environ | ({} if ray else {"SCHEMATHESIS_HOOKS": str(FRONTEND)})
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
    told: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return told
