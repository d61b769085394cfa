"""Makes an environment and installs pinned packages into it, with uv: what every `make` target calls first.

Run by the interpreter that has uv beside it (`.venv-uv`), from the root. Needs the standard library only, as
what it takes from clipserve does.

Everything but torch is pinned by hash. torch is pinned by version (`requirements/torch.txt`): its builds for
CPU and CUDA have other hashes. Which build is taken, first that can be had:

1. what the user's own sources offer as a build of its own, such as `2.13.0+cpu` (pip's or uv's find-links and
   indexes, from the environment or a configuration file);
2. what `UV_TORCH_BACKEND` names, or else uv's `auto`: the CPU build where there is no NVIDIA driver;
3. where PyTorch's own indexes are out of reach, or with DEVICE=cuda on a machine without a driver: PyPI's,
   which is a CUDA build on Linux.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from clipserve.command import run_command
from clipserve.errors import ClipServeError

UV = Path(sys.executable).with_name("uv")

OLDEST, NEWEST = (3, 11), (3, 14)

SECONDS_PER_LINE = 5.0

# Download and size on disk of torch 2.13.0 with what it needs, Linux on x86_64.
SIZES = {True: "190 MB to fetch, 0.7 GB on disk", False: "about 3 GB to fetch, 5.3 GB on disk"}

# pip's option -> uv's variable; pip parts several values with spaces, uv with what stands here.
TOLD_PIP = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
}


class InstallError(ClipServeError):
    """Cannot be installed; the message is for the user."""


def uv_environment(pip_settings: dict[str, str], environment: dict[str, str]) -> dict[str, str]:
    """`environment` with what pip was told, where uv itself was told nothing.

    Args:
        pip_settings: as `pip config list` names them, such as `global.index-url` or `:env:.find-links`.
        environment: variables that uv is going to see.
    """
    result = dict(environment)
    for option, (variable, separator) in TOLD_PIP.items():
        # pip's own order: the environment before the section of a command before the general section.
        values = [pip_settings.get(f"{section}.{option}") for section in (":env:", "install", "global")]
        told = next((value for value in values if value), None)
        if told and variable not in environment:
            result[variable] = separator.join(told.split())
            if option == "extra-index-url":
                # pip takes the best of all indexes; uv by itself takes the first that knows a package.
                result.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return result


def read_pip_settings() -> dict[str, str]:
    """What pip was told in its configuration files and the environment."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    settings = {}
    for line in listed.stdout.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            settings[name] = str(ast.literal_eval(value))
    return settings


def python_version(python: str) -> tuple[int, int] | None:
    """Major and minor version of an interpreter; None where it does not run."""
    try:
        asked = subprocess.run(
            [python, "-c", "import sys; print(*sys.version_info[:2])"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    major, minor = asked.stdout.split()
    return int(major), int(minor)


def check_python(python: str, newest: tuple[int, int]) -> None:
    """Checks that an interpreter may run the packages.

    Raises:
        InstallError: it may not.
    """
    version = python_version(python)
    if version is None:
        raise InstallError(f"PYTHON={python}: no Python that runs; name one: make PYTHON=python3.12 …")
    if not OLDEST <= version <= newest:
        raise InstallError(
            f"PYTHON={python} is {version[0]}.{version[1]}; needed is 3.{OLDEST[1]}"
            f"{'' if newest == OLDEST else f' to 3.{newest[1]}'}; name one: "
            f"make PYTHON=python3.{newest[1]} …"
        )


def torch_choice(requirement: str, uv: Uv, device: str) -> tuple[str, list[str]]:
    """The build of torch to install: its version, empty if it is there already, and uv's further arguments.

    Raises:
        InstallError: none can be found.
    """
    told = uv.would_install(requirement, "torch")
    if told == "":
        return "", []
    if told is not None and "+" in told and "UV_TORCH_BACKEND" not in uv.environment:
        return told, []
    by_backend = ["--torch-backend", uv.environment.get("UV_TORCH_BACKEND", "auto")]
    matched = uv.would_install(requirement, "torch", *by_backend)
    if matched is not None and not (device == "cuda" and matched.endswith("+cpu")):
        return matched, by_backend
    if told is None:
        raise InstallError(
            f"{requirement} cannot be found by uv; is the network there? PIP_FIND_LINKS or UV_FIND_LINKS "
            "may name a folder with its wheel"
        )
    return told, []


class Uv:
    """uv, for one environment.

    Attributes:
        environment: the variables that it sees.
    """

    def __init__(self, folder: Path, environment: dict[str, str]):
        self._folder = folder
        self.environment = environment

    def make(self, python: str) -> None:
        """Creates the environment; a broken or half-made one goes.

        Raises:
            InstallError: uv could not.
        """
        self._run([str(UV), "venv", "--quiet", "--clear", "--python", python, str(self._folder)])

    def install(self, *arguments: str) -> None:
        """`uv pip install`, of wheels only; says every few seconds that it is at work.

        Raises:
            InstallError: uv could not.
        """
        self._run([*self._pip_install(), "--quiet", "--only-binary", ":all:", *arguments])

    def would_install(self, requirement: str, name: str, *arguments: str) -> str | None:
        """The version of `name` that would be installed; empty if nothing would, None if uv cannot."""
        # A source that is out of reach is not waited for.
        environment = {"UV_HTTP_RETRIES": "0", **self.environment}
        asked = subprocess.run(
            [*self._pip_install(), "--dry-run", *arguments, requirement],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
        if asked.returncode != 0:
            return None
        found = re.search(rf"^ \+ {name}==(\S+)", asked.stderr, re.MULTILINE)
        return found[1] if found else ""

    def _pip_install(self) -> list[str]:
        return [str(UV), "pip", "install", "--python", str(self._folder)]

    def _run(self, command: list[str]) -> None:
        began = time.monotonic()
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=self.environment) as process:
            while True:
                try:
                    _, said = process.communicate(timeout=SECONDS_PER_LINE)
                    break
                except subprocess.TimeoutExpired:
                    print(f"  … {time.monotonic() - began:.0f} s", flush=True)
                except BaseException:
                    process.terminate()
                    raise
        if process.returncode != 0:
            raise InstallError(f"uv could not install into {self._folder}:\n{said.strip()}")


def install(arguments: argparse.Namespace) -> None:
    """Makes the environment if need be, and installs.

    Raises:
        InstallError: it cannot be done; an environment that was made in this call is removed again.
    """
    folder: Path = arguments.environment
    uv = Uv(folder, uv_environment(read_pip_settings(), dict(os.environ)))
    version = python_version(str(folder / "bin" / "python"))
    is_new = version is None or not OLDEST <= version <= arguments.newest
    if is_new:
        check_python(arguments.python, arguments.newest)
        uv.make(arguments.python)
    try:
        if arguments.locks:
            print(f"{folder}: {arguments.what}", flush=True)
            uv.install(
                "--require-hashes", "--no-deps", *(w for lock in arguments.locks for w in ("-r", lock))
            )
        if arguments.torch:
            requirement = Path(arguments.torch).read_text(encoding="utf-8").strip()
            found, backend = torch_choice(requirement, uv, arguments.device)
            if found:
                print(
                    f"{folder}: PyTorch {found}, {SIZES[found.endswith('+cpu')]} "
                    "(UV_TORCH_BACKEND=cpu, cu130, … would choose another build)",
                    flush=True,
                )
                uv.install(*backend, requirement)
        if arguments.without_needs:
            uv.install("--no-deps", arguments.without_needs)
    except BaseException:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m requirements.install", description=__doc__)
    parser.add_argument("environment", type=Path, help="its folder; made if there is none")
    parser.add_argument("locks", nargs="*", help="lock files")
    parser.add_argument("--what", default="pinned packages", help="what the locks hold, and how large it is")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of a new environment")
    parser.add_argument(
        "--newest",
        type=lambda text: tuple(map(int, text.split("."))),
        default=NEWEST,
        help="Python that the packages run on",
    )
    parser.add_argument("--torch", metavar="FILE", help="names torch's version; the build is chosen here")
    parser.add_argument(
        "--device", default="cpu", help="cuda: a CUDA build, whether there is a driver or not"
    )
    parser.add_argument("--without-needs", metavar="WHAT", help="a requirement to install without its own")
    arguments = parser.parse_args(argv)
    return run_command("install", lambda: install(arguments))


if __name__ == "__main__":
    sys.exit(main())
