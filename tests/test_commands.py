"""Every command line begins and ends alike: 0 done, 1 and one line, 2 usage, 130 interrupted."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_lines import outcomes

ROOT = Path(__file__).parents[1]

# Those of this environment, with words that get them as far as their work.
HERE = {
    "benchmarks.compare": [],
    "benchmarks.evaluate.__main__": ["--images", "captions.csv"],
    "benchmarks.formats": [],
    "benchmarks.gpu.__main__": [],
    "benchmarks.pictures": ["store"],
    "demo.languages": [],
    "demo.quantized": [],
    "demo.results": [],
    "demo.train": [],
    "export_scripts.export": [],
    "export_scripts.known_answers": [],
    "export_scripts.models": [],
    "export_scripts.packages.archive": [],
    "export_scripts.packages.triton": [],
    "export_scripts.timing": ["encoder.pt"],
    "export_scripts.tune": [],
    "export_scripts.verify": [],
    "reliability.__main__": ["soak"],
    "requirements.install": [".venv"],
    "requirements.on_top": [".venv-gpu", "wheels"],
    "serving.__main__": ["ready"],
    "serving.private": ["store"],
}
ELSEWHERE = {
    "benchmarks.bulk": (".venv-scale", []),
    "scale.bulk.__main__": (".venv-scale", ["images"]),
    "scale.bulk.estimate": (".venv-scale", []),
    "scale.serve.__main__": (".venv-scale", []),
    "search.__main__": (".venv-search", ["duplicates"]),
    "search.benchmark": (".venv-search", []),
    "search.demo": (".venv-search", ["--store", "store"]),
}
# They take no arguments that an option could be among.
WITHOUT_ARGUMENTS = {
    "benchmarks.engine",
    "benchmarks.figures",
    "benchmarks.floors",
    "benchmarks.in_process",
    "requirements.lock",
    "serving.java",
    "serving.torchserve",
    # Its own are one word; the rest is the command's that it names.
    "export_scripts.__main__",
}


def test_no_command_line_is_left_out() -> None:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    found = set()
    for name in listed.stdout.split():
        if name.startswith(("tests/", "standins/")):
            continue
        functions = ast.parse((ROOT / name).read_text(encoding="utf-8")).body
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in functions):
            found.add(name.removesuffix(".py").replace("/", "."))
    assert found == set(HERE) | set(ELSEWHERE) | WITHOUT_ARGUMENTS


def check(told: dict[str, tuple[int, str]]) -> None:
    status, message = told["unknown option"]
    assert (status, "--no-such-option" in message) == (2, True), message
    status, message = told["interrupted"]
    assert (status, message.count("\n"), "interrupted" in message) == (130, 1, True), message
    status, message = told["full disk"]
    assert (status, message.count("\n")) == (1, 1), message
    assert "/a/file" in message
    assert "No space left on device" in message


@pytest.mark.parametrize("module", sorted(HERE))
def test_a_command_line(module: str) -> None:
    """CASES 32, 50, 61."""
    check(outcomes(module, HERE[module]))


@pytest.mark.parametrize("module", sorted(ELSEWHERE))
def test_a_command_line_of_another_environment(module: str) -> None:
    environment, words = ELSEWHERE[module]
    python = ROOT / environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{environment} is not set up here")
    done = subprocess.run(
        [python, "tests/command_lines.py", module, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout))


@pytest.mark.parametrize("command", ["export", "verify", "tune", "triton"])
def test_ctrl_c_while_pytorch_is_imported(command: str) -> None:
    """It takes seconds, and a traceback of a hundred lines would be no answer."""
    code = """
import importlib.abc, runpy, sys
class Interrupts(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
runpy.run_module("export_scripts", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, f"{command}: interrupted\n")
