"""What README and docs name is there: files, sections, make targets, programs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def listed(*patterns: str) -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(name) for name in done.stdout.splitlines() if (ROOT / name).is_file()]


PAGES = listed("*.md")
FOLDERS = sorted({path.parts[0] for path in listed() if len(path.parts) > 1})

each_page = pytest.mark.parametrize("page", PAGES, ids=str)


def text_of(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """GitHub's, of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        name, _, anchor = link.partition("#")
        if name.startswith("http"):
            continue
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.resolve().relative_to(ROOT)), link


@each_page
def test_named_files_are_there(page: Path) -> None:
    # What an export or a user writes is not.
    rooms = "|".join(re.escape(name) for name in FOLDERS if name != "model_store")
    for name in re.findall(rf"`((?:{rooms})/[\w./-]+)`", text_of(page)):
        assert (ROOT / name).exists() or "NAME" in name, name
    for name in re.findall(r"`(test_\w+\.py)`", text_of(page)):
        assert list((ROOT / "tests").rglob(name)), name
    for module in re.findall(rf"python -m ((?:{rooms})[\w.]*)", text_of(page)):
        path = ROOT / module.replace(".", "/")
        assert (path / "__main__.py").exists() or path.with_suffix(".py").exists(), module


def test_named_targets_are_there() -> None:
    shown = subprocess.run(["make", "help-all"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = {"help", "help-all", *re.findall(r"^  make (\S+)", shown, re.MULTILINE)}
    named = {
        (str(page), target)
        for page in PAGES
        for words in re.findall(r"(?:^|`)make ((?:[a-z-]+ ?)+)", text_of(page), re.MULTILINE)
        for target in words.split()
    }
    assert len(named) > 50
    assert sorted((page, target) for page, target in named if target not in targets) == []
