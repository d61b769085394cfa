"""README and docs say what the results say, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import figures, formats
from benchmarks.figures import BLOCK, FIGURES, ROOT, pages, written


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_says_what_the_results_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == written(text), "run 'make figures'"
    # A marker that is misspelt would leave its figures to rot.
    assert text.count("figures: ") == text.count("<!-- /figures -->") == len(BLOCK.findall(text))


def test_all_figures_are_on_a_page() -> None:
    asked = [name for page in pages() for _, name, _ in BLOCK.findall(page.read_text(encoding="utf-8"))]
    assert sorted(asked) == sorted(FIGURES)


def test_what_was_typed_by_hand_is_replaced() -> None:
    page = "before\n<!-- figures: estimate -->\n| core-hours | 7 |\n<!-- /figures -->\nafter\n"
    after = written(page)
    assert "| core-hours | 7 |" not in after
    assert after.startswith("before\n")
    assert after.endswith("after\n")
    assert written(after) == after


def test_figures_that_nobody_writes_are_an_error() -> None:
    with pytest.raises(KeyError, match="nobody"):
        written("<!-- figures: nobody -->\n<!-- /figures -->\n")


def test_formats_are_measured_as_they_are_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole of `python -m benchmarks.formats --tiny`, in one format."""
    monkeypatch.setattr(formats, "VARIANTS", (("torchscript", "fp32"),))
    assert formats.main(["--tiny", "--rounds", "2"]) == 0
    said = capsys.readouterr().out
    head, rule, *_ = figures.formats().splitlines()
    assert head in said
    assert rule in said
    assert "| image | `torchscript` | fp32 |" in said
    assert "| text | `torchscript` | fp32 |" in said
    assert "of 2 rounds" in said
