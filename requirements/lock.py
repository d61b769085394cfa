"""Resolves the pinned versions of `pyproject.toml` anew, for Python 3.10 to 3.13: `make lock`.

torch is left out (its CPU and CUDA builds have other hashes, see `requirements/torch.txt`) with what only its
CUDA build needs; what its CPU build needs is named here, so that it is pinned as well.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parent / "pyproject.toml"

TORCH_NEEDS = "filelock\ntyping-extensions\nsympy\nnetworkx\njinja2\nfsspec\nsetuptools<82\n"

# Environment -> lock file -> extras of pyproject.toml; each builds on those before it in its environment. The
# search room has one of its own: Gradio wants an older Pillow than the server's, and search needs no torch. So
# has the scale room: Ray is large, and nobody needs it on one machine.
ENVIRONMENTS: dict[str, dict[str, tuple[str, ...]]] = {
    ".venv": {
        "run": ("client", "export", "serve", "demo"),
        "dev": ("dev",),
    },
    ".venv-search": {
        "search": ("client", "search"),
        "search-dev": ("search-dev",),
    },
    ".venv-scale": {
        "scale": ("client", "scale"),
        "scale-dev": ("scale-dev",),
    },
}
WITH_TORCH = {".venv", ".venv-scale"}


def main() -> int:
    """Writes the lock files; uv's exit status."""
    uv = [sys.executable, "-m", "uv", "pip", "compile", "--universal", "--python-version", "3.10"]
    uv += ["--generate-hashes", "--no-header", "--quiet", "--no-annotate"]
    with tempfile.TemporaryDirectory() as folder:
        needs = Path(folder) / "torch-needs.in"
        needs.write_text(TORCH_NEEDS, encoding="utf-8")
        without_torch = Path(folder) / "without-torch.txt"
        without_torch.write_text("torch ; python_version < '0'\n", encoding="utf-8")
        for environment, locks in ENVIRONMENTS.items():
            extras: list[str] = []
            earlier: list[str] = []
            for name, added in locks.items():
                extras += [word for extra in added for word in ("--extra", extra)]
                command = [*uv, str(PROJECT), *extras, "--override", str(without_torch)]
                command += [str(needs)] if environment in WITH_TORCH else []
                command += [word for lock in earlier for word in ("--constraint", lock)]
                command += ["--output-file", str(HERE / f"{name}.lock")]
                subprocess.run(command, check=True)
                earlier.append(str(HERE / f"{name}.lock"))
        java = [*uv, str(HERE / "java.in"), "--output-file", str(HERE / "java.lock")]
        subprocess.run(java, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
