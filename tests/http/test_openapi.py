"""docs/openapi.json as schemathesis reads it: requests of its own making, no 5xx, no answer outside it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from serving.local import ROOT
from tests.http.api import Api

PYTHON = ROOT / ".venv-clients" / "bin" / "python"
PAGE = ROOT / "docs" / "openapi.json"
# Of each operation. With 2500 schemathesis finds one thing, in 6,086 requests: TorchServe's frontend answers
# 500 to a form's part with an empty name, before a worker sees it (docs/deployment.md).
EXAMPLES = os.environ.get("EXAMPLES", "25")

pytestmark = pytest.mark.skipif(not PYTHON.is_file(), reason="no .venv-clients; run 'make test-clients'")

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
]


def test_it_is_openapi_3_1() -> None:
    subprocess.run([PYTHON, "-m", "openapi_spec_validator", "--schema", "3.1", PAGE], check=True)


def test_answers_are_those_of_the_document(api: Api, pytestconfig: pytest.Config, tmp_path: Path) -> None:
    only = [] if pytestconfig.getoption("--server") == "ray" else ["--include-path-regex", "^/predictions/"]
    command = [
        *(PYTHON, "-m", "schemathesis.cli", "run", PAGE, "--url", api.url, *only),
        *("--checks", ",".join(CHECKS), "--max-examples", EXAMPLES, "--seed", "1"),
        *("--phases", "examples,coverage,fuzzing", "--mode", "all", "--generation-database", "none"),
        *("--header", f"Authorization: {api.bearer()['Authorization']}", "--no-color"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
