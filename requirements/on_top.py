"""An environment on top of the one that runs this, with wheels from a folder; no network is asked.

`python3 -m requirements.on_top .venv-gpu wheels`: for a machine that has PyTorch for its GPU, and lacks the
rest. What is not in the new environment is taken from beneath it. Called again, it adds wheels to it.
"""

from __future__ import annotations

import argparse
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from clipserve.command import run_command
from requirements.install import InstallError


def put(environment: Path, wheels: Path) -> None:
    """Makes the environment where there is none, and installs what is in the folder.

    Raises:
        OSError: no wheel is there, or the environment cannot be written.
        InstallError: pip installs nothing, and has said why.
    """
    found = sorted(map(str, wheels.glob("*.whl")))
    if not found:
        raise FileNotFoundError(f"{wheels}: no *.whl there; docs/gpu.md says which to put there")
    is_new = not (environment / "bin" / "python").exists()
    try:
        if is_new:
            _make(environment)
        # This interpreter's pip: the new one has none, and needs none. What lies beneath stays as it is, and
        # the same version of it is installed all the same: its programs stand beside another Python.
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        at = ["--python", str(environment / "bin" / "python")]
        options = ["-q", "--no-index", "--no-deps", "--ignore-installed"]
        done = subprocess.run([*pip, *at, "install", *options, *found], check=False)
        if done.returncode:
            raise InstallError(f"pip has installed nothing of {wheels}, and said why above")
    except BaseException:
        if is_new:
            shutil.rmtree(environment, ignore_errors=True)
        raise


def _make(environment: Path) -> None:
    venv.create(environment, symlinks=True)
    beneath = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # Of an environment within an environment, Python itself would see the outermost packages only.
    lines = [f"import site; site.addsitedir({path!r})\n" for path in [*beneath, site.getusersitepackages()]]
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "beneath.pth").write_text("".join(lines), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m requirements.on_top", description=__doc__)
    parser.add_argument("environment", type=Path, help="its folder; made if there is none")
    parser.add_argument("wheels", type=Path, help="folder of *.whl")
    arguments = parser.parse_args(argv)
    return run_command("on_top", lambda: put(arguments.environment, arguments.wheels))


if __name__ == "__main__":
    sys.exit(main())
