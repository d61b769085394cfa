"""Imports point one way: export_scripts -> clipserve <- handlers; every other room uses clipserve."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each room may import of the project's own rooms.
ALLOWED = {
    "clipserve": {"clipserve"},
    "handlers": {"clipserve"},
    "export_scripts": {"clipserve", "export_scripts"},
    "serving": {"clipserve", "serving"},
    "pictures": {"clipserve", "pictures"},
    "search": {"clipserve", "pictures", "search", "serving", "demo"},
    "scale": {"clipserve", "pictures", "scale", "serving"},
    "demo": {"clipserve", "demo", "serving", "export_scripts"},
}
ROOMS = set(ALLOWED) | {"benchmarks", "tests"}

# What a worker needs; the client is for callers and has two more.
CORE_PACKAGES = {"clipserve", "torch", "numpy", "PIL", "tokenizers"}
CLIENT_PACKAGES = CORE_PACKAGES | {"httpx", "tenacity"}
# What an extra brings is imported where it is used, or its lack would stop a worker.
OPTIONAL_PACKAGES = {"image_formats.py": {"pillow_heif"}}


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


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_rooms_import_what_they_may(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files or room == "search", room
    for path in files:
        own = imported(path) & ROOMS
        assert own <= ALLOWED[room], f"{path.relative_to(ROOT)} imports {sorted(own - ALLOWED[room])}"


def test_the_core_needs_four_packages() -> None:
    import sys

    for path in (ROOT / "clipserve").glob("*.py"):
        foreign = imported(path) - set(sys.stdlib_module_names)
        allowed = CLIENT_PACKAGES if path.name == "client.py" else CORE_PACKAGES
        optional = OPTIONAL_PACKAGES.get(path.name, set())
        assert foreign <= allowed | optional, f"{path.name} imports {sorted(foreign - allowed)}"
        assert not imported_at_once(path) & optional, path.name


def test_the_core_reads_no_environment() -> None:
    for path in (ROOT / "clipserve").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert "os.environ" not in source, path.name
        assert "getenv" not in source, path.name


def test_handlers_do_not_import_each_other() -> None:
    handlers = {path.stem for path in (ROOT / "handlers").glob("*.py")}
    assert len(handlers) == 3
    for path in (ROOT / "handlers").glob("*.py"):
        assert not imported(path) & handlers, path.name


def test_the_bulk_job_has_no_second_copy_of_anything() -> None:
    # Pixels and weights are the business of clipserve; rows, the writer's lock and thumbnails, of pictures.
    for path in (ROOT / "scale").rglob("*.py"):
        assert not imported(path) & {"PIL", "tokenizers", "transformers", "torchvision"}, path.name
    users = {path.name for path in (ROOT / "scale").rglob("*.py") if "pictures" in imported(path)}
    assert all((ROOT / "scale" / "bulk" / name).exists() for name in users), users


HTTPX_CALLS = {"Client", "AsyncClient", "request", "stream", "get", "post", "put", "delete"}


@pytest.mark.parametrize("room", sorted((ROOMS | {"reliability"}) - {"tests"}))
def test_no_request_goes_through_a_proxy_of_the_environment(room: str) -> None:
    """ATTACKS C1: HTTP_PROXY would be shown every token and every picture."""
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"httpx.{n}" for n in HTTPX_CALLS}:
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("trust_env") == "False", f"{path}:{node.lineno}"
