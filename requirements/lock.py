"""Resolves the pinned versions of `pyproject.toml` anew, for Python 3.11 to 3.14: `make lock`.

torch is left out (its CPU and CUDA builds have other hashes, see `requirements/torch.txt`) with what only its
CUDA build needs; what its CPU build needs is named here, so that it is pinned as well. Left out are also what
would have to match torch's build and no CLIP needs, and what sends usage statistics.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parent / "pyproject.toml"

LEFT_OUT = ("torch", "torchvision", "timm", "openvino-telemetry")
TORCH_NEEDS = "filelock\ntyping-extensions\nsympy\nnetworkx\njinja2\nfsspec\nsetuptools<82\n"

# Environment -> lock file -> extras of pyproject.toml; each builds on those before it in its environment. The
# search room has one of its own, for search needs no torch: what else a worker needs it has, since it reads
# pictures with a worker's code. So has the scale room: Ray is large, and nobody needs it on one machine.
ENVIRONMENTS: dict[str, dict[str, tuple[str, ...]]] = {
    ".venv": {
        "run": ("client", "export", "serve", "demo"),
        "onnx": ("onnx",),
        "dev": ("dev",),
        "bench": ("bench",),
    },
    ".venv-search": {
        "search": ("client", "worker", "search"),
        "search-dev": ("search-dev",),
    },
    ".venv-scale": {
        "scale": ("client", "scale"),
        "scale-dev": ("scale-dev",),
    },
}
WITH_TORCH = {".venv", ".venv-scale"}


def main() -> int:
    """Writes the lock files; uv's exit status, 130 interrupted."""
    try:
        resolve()
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        print("lock: interrupted", file=sys.stderr)
        return 130
    return 0


def resolve() -> None:
    """Writes the lock files.

    Raises:
        subprocess.CalledProcessError: uv says why.
    """
    uv = [sys.executable, "-m", "uv", "pip", "compile", "--universal", "--python-version", "3.11"]
    uv += ["--generate-hashes", "--no-header", "--quiet", "--no-annotate"]
    with tempfile.TemporaryDirectory() as folder:
        needs = Path(folder) / "torch-needs.in"
        needs.write_text(TORCH_NEEDS, encoding="utf-8")
        left_out = Path(folder) / "left-out.txt"
        left_out.write_text(
            "".join(f"{name} ; python_version < '0'\n" for name in LEFT_OUT), encoding="utf-8"
        )
        for environment, locks in ENVIRONMENTS.items():
            extras: list[str] = []
            earlier: list[str] = []
            for name, added in locks.items():
                extras += [word for extra in added for word in ("--extra", extra)]
                command = [*uv, str(PROJECT), *extras, "--override", str(left_out)]
                command += [str(needs)] if environment in WITH_TORCH else []
                command += [word for lock in earlier for word in ("--constraint", lock)]
                command += ["--output-file", str(HERE / f"{name}.lock")]
                subprocess.run(command, check=True)
                earlier.append(str(HERE / f"{name}.lock"))
        for name in ("clients", "heic", "java", "old-torch", "upload", "uv"):
            alone = [*uv, str(HERE / f"{name}.in"), "--output-file", str(HERE / f"{name}.lock")]
            subprocess.run(alone, check=True)
        for name in ("exporters", "infinity", "openvino"):
            with_torch = [*uv, str(HERE / f"{name}.in"), str(needs), "--override", str(left_out)]
            subprocess.run([*with_torch, "--output-file", str(HERE / f"{name}.lock")], check=True)


if __name__ == "__main__":
    sys.exit(main())
