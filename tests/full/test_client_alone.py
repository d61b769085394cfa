"""`pip install '.[client]'` in an environment of its own: no torch, and the client's tests pass there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from requirements.install import UV, read_pip_settings, uv_environment

ROOT = Path(__file__).parents[2]

# With what httpx needs.
PACKAGES = {"clipserve", "numpy", "httpx", "tenacity", "httpcore", "h11", "anyio", "idna", "certifi"}

pytestmark = pytest.mark.full


def test_the_client_alone(tmp_path: Path) -> None:
    """Needs an index of packages: about 20 MB."""
    project, python, home = tmp_path / "project", tmp_path / "venv" / "bin" / "python", tmp_path / "home"
    home.mkdir()
    # A copy: setuptools builds within the folder.
    shutil.copytree(ROOT / "clipserve", project / "clipserve", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    told = uv_environment(read_pip_settings(), dict(os.environ)) | {"HOME": str(home)}

    def uv(*words: str) -> str:
        done = subprocess.run([UV, *words], env=told, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    uv("venv", "--quiet", "--python", sys.executable, str(python.parents[1]))
    uv("pip", "install", "--quiet", "--python", str(python), f"{project}[client]")
    installed = uv("pip", "list", "--python", str(python), "--format", "freeze").splitlines()
    found = {line.partition("==")[0].partition(" @")[0] for line in installed}
    assert {"clipserve", "numpy", "httpx", "tenacity"} <= found
    assert found <= PACKAGES | {"typing_extensions", "typing-extensions"}
    uv("pip", "install", "--quiet", "--python", str(python), "pytest")
    shutil.copy(ROOT / "tests" / "clipserve" / "test_client.py", tmp_path)
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", tmp_path, "test_client.py"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
