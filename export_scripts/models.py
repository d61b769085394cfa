"""What can be exported, one line each: `make models`; with `LANGUAGE=hu` what is best for it comes first."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table

from clipserve.command import run_command
from clipserve.errors import ExportError

FILE = Path(__file__).with_name("models.toml")
MANY: Final = "many"

# Creative Commons' -NC- licences, Apple's for research (`apple-amlr`), and those whose names say it.
NOT_COMMERCIAL = re.compile(r"(^|-)nc(-|$)|^apple-amlr$|research|non-?commercial", re.IGNORECASE)

# Where the output is no terminal, which would say its width.
WIDTH = 200


@dataclass(frozen=True)
class Figure:
    """A number, and the key of its source in `models.toml`."""

    value: float
    source: str


@dataclass(frozen=True)
class Model:
    """A published checkpoint; what is not known of it is None.

    Attributes:
        name: what `MODEL` takes, or `TEXT_MODEL` where it is for texts only.
        family: as in `export_scripts.encoders.supported`, or the layout where that says more.
        texts_for: the `MODEL` that its texts are for; None where it has pictures as well.
        pixels: edge of its pictures.
        dimension: of an embedding.
        tokens: the most of a text.
        languages: codes of ISO 639-1, or `many` where its publisher names no list that is known here.
        license: of its weights; see `EncoderSpec`.
        parameters: of both encoders, in millions.
        memory: MB of a worker.
        time: ms of one picture.
        recall: by language, %.
    """

    name: str
    family: str
    texts_for: str | None
    pixels: int | None
    dimension: int
    tokens: int
    languages: tuple[str, ...] | Literal["many"]
    license: str | None
    parameters: int | None
    memory: Figure | None
    time: Figure | None
    recall: dict[str, Figure]

    @property
    def languages_said(self) -> str:
        """The codes where they are few, else how many."""
        if isinstance(self.languages, str):
            return self.languages
        return ", ".join(self.languages) if len(self.languages) < 4 else str(len(self.languages))

    def rank(self, language: str) -> tuple[int, float]:
        """Sorts by what is known for a language: recall, then that it is named, then that there are many.

        The bundled checkpoint knows drawn pictures only, whatever the language.
        """
        if language in self.recall:
            return 0, -self.recall[language].value
        if self.name == "demo":
            return 4, 0.0
        if isinstance(self.languages, str):
            return 2, 0.0
        return (1 if language in self.languages else 3), 0.0


@cache
def read_models() -> tuple[Model, ...]:
    """The table, in its own order."""
    return tuple(_model(row) for row in _file()["models"])


@cache
def read_sources() -> dict[str, str]:
    """Where figures are from, by the key that they name."""
    sources: dict[str, str] = _file()["sources"]
    return sources


def known_languages() -> frozenset[str]:
    """Codes that the table says something of."""
    listed = {code for model in read_models() if model.languages != MANY for code in model.languages}
    return frozenset(listed | {code for model in read_models() for code in model.recall})


def for_language(language: str) -> list[Model]:
    """The models, those first that are known to be best for a language.

    Raises:
        ExportError: nothing here says anything of it.
    """
    if language not in known_languages():
        raise ExportError(
            f"LANGUAGE={language}: nothing is known for it; known are {', '.join(sorted(known_languages()))}"
        )
    return sorted(read_models(), key=lambda model: model.rank(language))


KINDS_HEAD = ("`MODEL`", "family", "dimension", "languages", "tokens", "licence")


def kinds() -> Iterator[tuple[str, ...]]:
    """README's table: a row for those of a family that stand together and differ in size alone."""
    for (family, texts_for, languages, tokens, license), alike in groupby(
        read_models(), lambda of: (of.family, of.texts_for, of.languages_said, of.tokens, of.license)
    ):
        first, *others = alike
        dimensions = sorted({first.dimension, *(other.dimension for other in others)})
        said = license or "unknown"
        yield (
            f"`{'TEXT_MODEL=' if texts_for else ''}{first.name}`"
            f"{f' and {len(others)} more' if others else ''}",
            f"{family}{f', for `{texts_for}`' if texts_for else ''}",
            " to ".join(f"{dimension}" for dimension in dict.fromkeys((dimensions[0], dimensions[-1]))),
            languages,
            f"{tokens}",
            f"**{said}**: not for commercial use" if NOT_COMMERCIAL.search(said) else said,
        )


def _file() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def _model(row: dict[str, Any]) -> Model:
    recall = dict(row.get("recall", {}))
    source = recall.pop("source", "")
    languages = row["languages"]
    return Model(
        name=row["name"],
        family=row["family"],
        texts_for=row.get("texts_for"),
        pixels=row.get("pixels"),
        dimension=row["dimension"],
        tokens=row["tokens"],
        languages=MANY if languages == MANY else tuple(languages),
        license=row.get("license"),
        parameters=row.get("parameters"),
        memory=_figure(row.get("memory"), "mb"),
        time=_figure(row.get("time"), "ms"),
        recall={code: Figure(value, source) for code, value in recall.items()},
    )


def _figure(said: dict[str, Any] | None, unit: str) -> Figure | None:
    return None if said is None else Figure(said[unit], said["source"])


def _print(language: str | None) -> None:
    models = read_models() if language is None else for_language(language)
    sources = list(read_sources())
    mark = {source: f"{number}" for number, source in enumerate(sources, 1)}

    def said(figure: Figure | None) -> str:
        return "" if figure is None else f"{figure.value:g} [{mark[figure.source]}]"

    table = Table(box=None, pad_edge=False, header_style="", highlight=False)
    for heading in (
        "MODEL",
        "family",
        "pixels",
        "dim",
        "tokens",
        "languages",
        "licence",
        "M param.",
        "MB",
        "ms",
    ):
        right = heading in ("pixels", "dim", "tokens", "M param.")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    table.add_column(f"recall in {language}, %" if language else "recall, %")
    for model in models:
        recall = (
            model.recall if language is None else {k: v for k, v in model.recall.items() if k == language}
        )
        shown = (f"{'' if language else f'{code} '}{said(figure)}" for code, figure in recall.items())
        table.add_row(
            model.name if model.texts_for is None else f"  TEXT_MODEL={model.name}",
            model.family,
            _number(model.pixels),
            _number(model.dimension),
            _number(model.tokens),
            model.languages_said,
            model.license or "unknown",
            _number(model.parameters),
            said(model.memory),
            said(model.time),
            ", ".join(shown),
        )
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
    console.print()
    for source, text in read_sources().items():
        console.print(f"[{mark[source]}] {text}", soft_wrap=True)
    if language is not None and not any(language in model.recall for model in models):
        console.print(
            f"No recall in {language} is known here: those that name it come first, then those that name no "
            "language of many."
        )
    console.print("Next: make export MODEL=…, with a name from above or a folder of such a checkpoint")


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m export_scripts models", description=__doc__)
    parser.add_argument("--language", help="code of ISO 639-1: what is known for it comes first")
    arguments = parser.parse_args(argv)
    return run_command("models", lambda: _print(arguments.language))
