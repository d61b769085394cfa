"""The table of what can be exported, against what the exporter has and what README says."""

from __future__ import annotations

import re
import tomllib

import pytest

from export_scripts import models
from export_scripts.checkpoints.loading import DEFAULT_TEXT_MODELS, LAYOUTS
from export_scripts.encoders.supported import FAMILIES
from export_scripts.models import MANY, kinds, read_models, read_sources

# A layout of many families, whose folders say which; so it has rows of its own name.
OPEN_CLIP = "open_clip"


def test_every_family_is_one_that_the_exporter_has() -> None:
    families = {family.name for family in FAMILIES.values()}
    for model in read_models():
        if model.texts_for is None:
            assert model.family in families | {OPEN_CLIP}, model.name
        else:
            assert any(layout.name.startswith(model.family) for layout in LAYOUTS), model.name
    # And none is left out.
    assert families <= {model.family for model in read_models()}


def test_facts_are_in_range_and_say_where_they_are_from() -> None:
    rows = tomllib.loads(models.FILE.read_text(encoding="utf-8"))["models"]
    allowed = {*models.Model.__dataclass_fields__}
    names = [model.name for model in read_models()]
    assert len(names) == len(set(names)) > 30
    for row, model in zip(rows, read_models(), strict=True):
        # A misspelt field would be left out without a word.
        assert row.keys() <= allowed, model.name
        assert (model.texts_for is None) == (model.pixels is not None)
        assert model.texts_for in {None, *names}
        assert all(0 < value <= 100 for value in (figure.value for figure in model.recall.values()))
        for figure in (model.memory, model.time, *model.recall.values()):
            assert figure is None or figure.source in read_sources(), model.name
        languages = () if model.languages == MANY else model.languages
        assert model.languages == MANY or all(re.fullmatch(r"[a-z]{2}(-Hant)?", code) for code in languages)
    assert {*DEFAULT_TEXT_MODELS, *DEFAULT_TEXT_MODELS.values()} <= {*names}


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert models.main(arguments) == 0
    return capsys.readouterr().out.splitlines()


def test_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys)
    for model in read_models():
        assert sum(line.split()[:1] == [model.name] for line in lines) == (model.texts_for is None), (
            model.name
        )
    siglip = next(line for line in lines if line.startswith("google/siglip2-base-patch16-224 "))
    assert siglip.split()[1:9] == ["SigLIP", "224", "768", "64", "many", "apache-2.0", "375", "5.8"]
    assert "en 75.2 [1], de 86.4 [1], ar 61.7 [1]" in siglip
    assert any(line.startswith("[1] immich's table of models") for line in lines)
    assert sum("cc-by-nc-4.0" in line for line in lines) >= 6


def test_sorted_by_what_is_known_for_a_language(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "--language=de")
    names = [line.split()[0] for line in lines[1:5]]
    assert names == [
        "google/siglip2-so400m-patch16-512",
        "google/siglip2-base-patch16-224",
        "google/siglip2-base-patch32-256",
        "laion/CLIP-ViT-B-32-xlm-roberta-base-laion5B-s13B-b90k",
    ]
    assert "86.4 [1]" in lines[2]
    # Figures of another language are not those that were asked for.
    assert "75.2" not in lines[2]


def test_a_language_without_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """First those that name it, then those of many, then the others; and that no figure is known is said."""
    lines = shown(capsys, "--language=hu")
    assert lines[1].split()[0] == "TEXT_MODEL=clip-ViT-B-32-multilingual-v1"
    order = [line.split()[0] for line in lines if line.startswith(("google", "clip-ViT"))]
    assert order.index("google/siglip2-base-patch16-224") < order.index("clip-ViT-B-32")
    assert any(line.startswith("No recall in hu is known here") for line in lines)


def test_a_language_that_nothing_is_known_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["--language=xx"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("models: LANGUAGE=xx: nothing is known for it; known are am, ar,")
    assert error.count("\n") == 1


def test_kinds_are_all_of_the_table() -> None:
    """README's rows: each says its first model, and how many more it stands for."""
    rows = list(kinds())
    counts = [1 + int((re.findall(r" and (\d+) more$", row[0]) or [0])[0]) for row in rows]
    assert sum(counts) == len(read_models())
    first = 0
    for row, count in zip(rows, counts, strict=True):
        alike = read_models()[first : first + count]
        first += count
        assert f"`{alike[0].name}`" in row[0].replace("TEXT_MODEL=", "")
        for model in alike:
            assert model.family in row[1]
            assert str(min(one.dimension for one in alike)) in row[2]
            assert row[3:5] == (model.languages_said, str(model.tokens))
            assert (model.license or "unknown") in row[5]
            assert ("not for commercial use" in row[5]) == (model.license in ("cc-by-nc-4.0", "apple-amlr"))
