"""Lets a CUDA build of torch be imported without NVIDIA's libraries, for use on the CPU alone.

Run by the interpreter that has the torch. The wheels that PyPI has of older versions are CUDA builds. They
name gigabytes of libraries that a CPU never calls, and do not load without them. For each that is missing,
this compiles one of the same name whose functions do nothing, and puts it beside torch's own. (libcudart is
asked how many devices there are, so it is installed.) A CPU build names none, and nothing is made.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

# The driver's: loaded by name when a device is used, never with torch.
DRIVER = "libcuda.so.1"


def main() -> int:
    """Compiles what is missing; 0 done, 1 no tools to do it with."""
    missing = [tool for tool in ("cc", "readelf") if shutil.which(tool) is None]
    if missing:
        print(f"stand_ins: no {' and no '.join(missing)} here; apt-get install gcc", file=sys.stderr)
        return 1
    site_packages = Path(sysconfig.get_path("platlib"))
    libraries = site_packages / "torch" / "lib"
    needed: set[str] = set()
    symbols: dict[str, set[str]] = {}
    for library in libraries.glob("lib*.so*"):
        listing = subprocess.run(
            ["readelf", "--dynamic", "--dyn-syms", "--wide", str(library)],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        needed |= set(re.findall(r"\(NEEDED\).*\[(lib(?:cu|nv|nccl)\S+)\]", listing))
        # "UND name@version (n)"; NVIDIA's versions are the libraries' names, and some libraries have none.
        for name, version in re.findall(r" UND (\w+)(?:@(\S+))?(?: \(\d+\))?$", listing, re.MULTILINE):
            symbols.setdefault(version, set()).add(name)
    present = {path.name for path in site_packages.rglob("lib*.so*")}
    for library_name in sorted(needed - present - {DRIVER}):
        stem = library_name.removeprefix("lib").partition(".")[0]
        names = symbols.get(library_name, set()) | {
            n for n in symbols.get("", ()) if n.lower().startswith(stem)
        }
        _compile(libraries / library_name, names, versioned=library_name in symbols)
        print(f"{library_name}: {len(names)} functions that do nothing")
    return 0


def _compile(library: Path, names: set[str], *, versioned: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, versions = Path(folder) / "library.c", Path(folder) / "library.map"
        source.write_text("".join(f"void {name}(void) {{}}\n" for name in sorted(names)))
        versions.write_text(f"{library.name} {{ global: *; }};\n")
        command = ["cc", "-shared", "-nostdlib", "-fPIC", "-w", f"-Wl,-soname,{library.name}", str(source)]
        command += [f"-Wl,--version-script,{versions}"] if versioned else []
        subprocess.run([*command, "-o", str(library)], check=True)


if __name__ == "__main__":
    sys.exit(main())
