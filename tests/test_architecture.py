"""Imports point one way: export_scripts -> clipserve <- handlers; every other room uses clipserve."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@cache
def tracked() -> tuple[Path, ...]:
    """Every file that git tracks or is about to, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(Path(name) for name in listed.stdout.splitlines() if (ROOT / name).is_file())


def python_files(room: str) -> list[Path]:
    return [ROOT / path for path in tracked() if path.parts[0] == room and path.suffix == ".py"]


# What each room may import of the project's own rooms. None but tests imports tests.
ALLOWED: dict[str, set[str]] = {
    "clipserve": {"clipserve"},
    "handlers": {"clipserve"},
    "export_scripts": {"clipserve", "export_scripts"},
    "serving": {"clipserve", "serving"},
    "pictures": {"clipserve", "pictures"},
    "search": {"clipserve", "pictures", "search", "serving", "demo"},
    "scale": {"clipserve", "pictures", "scale", "serving"},
    "demo": {"clipserve", "demo", "serving", "export_scripts"},
    "reliability": {"clipserve", "reliability", "scale", "serving"},
    "standins": {"clipserve", "demo", "export_scripts", "standins"},
    "benchmarks": {
        "benchmarks", "clipserve", "demo", "export_scripts", "pictures", "reliability", "scale", "serving",
        "standins",
    },
    "requirements": {"clipserve", "requirements"},
}  # fmt: skip
ALLOWED["tests"] = {*ALLOWED, "tests"}

# What a worker needs; the client is for callers and has others.
CORE_PACKAGES = {"clipserve", "torch", "numpy", "PIL", "tokenizers", "orjson"}
CLIENT_PACKAGES = {"clipserve", "numpy", "httpx", "tenacity"}
# What an extra brings is imported where it is used, or its lack would stop a worker, or a client.
OPTIONAL_PACKAGES = {"isobmff.py": {"pillow_heif"}, "rows.py": {"orjson"}}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(str(node.module).partition(".")[0])
    return names


def imported_at_once(path: Path) -> set[str]:
    """What is imported as soon as the file itself is."""
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    plain = [alias.name for s in statements if isinstance(s, ast.Import) for alias in s.names]
    return {name.partition(".")[0] for name in plain} | {
        str(s.module).partition(".")[0] for s in statements if isinstance(s, ast.ImportFrom)
    }


def test_every_room_has_its_row() -> None:
    """A new room fails until it says what it may import."""
    assert {path.parts[0] for path in tracked() if path.suffix == ".py" and path.parent.name} == set(ALLOWED)


def test_every_folder_is_on_the_map() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {path.parts[0] for path in tracked() if len(path.parts) > 1}
    assert [name for name in sorted(folders) if f"`{name}/`" not in page] == []
    assert len(page.splitlines()) <= 60, "more than a screen"


# So long a file is about two things by now: it is split by what each is about. Drawing the demo's scenes is
# one, thing after thing, with the same few strokes for all.
TOO_MANY_LINES = 400
LONG = {"demo/scenes.py"}


def test_no_file_of_the_product_is_long() -> None:
    product = [path for path in tracked() if path.suffix == ".py" and path.parts[0] != "tests"]
    lines = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in product}
    assert {name: count for name, count in lines.items() if count >= TOO_MANY_LINES}.keys() == LONG


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_rooms_import_what_they_may(room: str) -> None:
    for path in python_files(room):
        own = imported(path) & set(ALLOWED)
        assert own <= ALLOWED[room], f"{path.relative_to(ROOT)} imports {sorted(own - ALLOWED[room])}"


def test_the_core_needs_five_packages() -> None:
    for path in python_files("clipserve"):
        name = path.relative_to(ROOT / "clipserve").parts[0].removesuffix(".py")
        foreign = imported(path) - set(sys.stdlib_module_names)
        allowed = CLIENT_PACKAGES if name == "client" else CORE_PACKAGES
        optional = OPTIONAL_PACKAGES.get(path.name, set())
        assert foreign <= allowed | optional, f"{path.name} imports {sorted(foreign - allowed)}"
        assert not imported_at_once(path) & optional, path.name


def test_the_client_needs_three_packages() -> None:
    """Itself and all that it imports, in an interpreter that finds nothing else."""
    code = """
import importlib.abc, sys
class Worker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("torch", "PIL", "tokenizers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Worker())
import clipserve.client, clipserve.command, clipserve.arguments, clipserve.interrupt
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_core_reads_no_environment() -> None:
    for path in python_files("clipserve"):
        source = path.read_text(encoding="utf-8")
        assert "os.environ" not in source, path.name
        assert "getenv" not in source, path.name


def test_the_bulk_job_has_no_second_copy_of_anything() -> None:
    # Pixels and weights are the business of clipserve; rows, the writer's lock and thumbnails, of pictures.
    for path in python_files("scale"):
        assert not imported(path) & {"PIL", "tokenizers", "transformers", "torchvision"}, path.name
    users = {path.name for path in python_files("scale") if "pictures" in imported(path)}
    assert all((ROOT / "scale" / "bulk" / name).exists() for name in users), users


HTTPX_CALLS = {"Client", "AsyncClient", "request", "stream", "get", "post", "put", "delete"}


@pytest.mark.parametrize("room", sorted(set(ALLOWED) - {"tests"}))
def test_no_request_goes_through_a_proxy_of_the_environment(room: str) -> None:
    """ATTACKS C1: HTTP_PROXY would be shown every token and every picture."""
    for path in python_files(room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"httpx.{n}" for n in HTTPX_CALLS}:
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("trust_env") == "False", f"{path}:{node.lineno}"
