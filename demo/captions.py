"""Captions of scenes in 40 languages, put together from `demo/vocabulary/<code>.json`.

The files' format is described in `demo/vocabulary/README.md`.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from demo.world import COUNTS, RUNNING_EXAMPLE, SETTINGS, THINGS, Scene

VOCABULARY_DIR = Path(__file__).parent / "vocabulary"

LANGUAGES = {
    "sq": "Albanian", "am": "Amharic", "ar": "Arabic", "az": "Azerbaijani", "bn": "Bengali",
    "bg": "Bulgarian", "ca": "Catalan", "zh-Hans": "Chinese (Simplified)",
    "zh-Hant": "Chinese (Traditional)", "nl": "Dutch", "en": "English", "et": "Estonian",
    "fa": "Farsi", "fr": "French", "ka": "Georgian", "de": "German", "el": "Greek", "hi": "Hindi",
    "hu": "Hungarian", "is": "Icelandic", "id": "Indonesian", "it": "Italian", "ja": "Japanese",
    "kk": "Kazakh", "ko": "Korean", "lv": "Latvian", "mk": "Macedonian", "ms": "Malay",
    "ps": "Pashto", "pl": "Polish", "ro": "Romanian", "ru": "Russian", "sl": "Slovenian",
    "es": "Spanish", "sv": "Swedish", "tl": "Tagalog", "th": "Thai", "tr": "Turkish",
    "ur": "Urdu", "vi": "Vietnamese",
}  # fmt: skip

# `script` -> the first words of the Unicode names of its letters.
SCRIPT_LETTERS = {
    "Latin": ("LATIN",),
    "Cyrillic": ("CYRILLIC",),
    "Greek": ("GREEK",),
    "Arabic": ("ARABIC",),
    "Bengali": ("BENGALI",),
    "Devanagari": ("DEVANAGARI",),
    "Ethiopic": ("ETHIOPIC",),
    "Georgian": ("GEORGIAN",),
    "Hangul": ("HANGUL",),
    "Han": ("CJK",),
    "Japanese": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
    "Thai": ("THAI",),
}


@dataclass(frozen=True)
class Vocabulary:
    """One language's phrases; see `demo/vocabulary/README.md` for what each field holds."""

    code: str
    name: str
    native_name: str
    script: str
    direction: str
    subjects: dict[str, dict[str, list[str]]]
    settings: dict[str, dict[str, list[str]]]
    patterns: dict[str, list[str]]
    picture_of: list[str]
    example: list[str]

    def captions(self, scene: Scene) -> list[str]:
        """Every wording of `scene`, the plainest first."""
        if scene.thing is None:
            alone = self.settings[scene.setting]["alone"]
            return alone + [form.format(a) for form, a in product(self.picture_of, alone)]
        count = str(scene.count)
        return [
            pattern.format(subject=subject, where=where)
            for pattern, subject, where in product(
                self.patterns[count],
                self.subjects[scene.thing][count],
                self.settings[scene.setting]["where"],
            )
        ]

    def problems(self) -> Iterator[str]:
        """What is wrong with this vocabulary, in words; nothing when it is complete."""
        if LANGUAGES.get(self.code) != self.name:
            yield f"{self.code}: name {self.name!r}, should be {LANGUAGES.get(self.code)!r}"
        if self.direction not in ("ltr", "rtl"):
            yield f"{self.code}: direction {self.direction!r}, allowed are 'ltr' and 'rtl'"
        yield from self._shape_problems()
        yield from self._text_problems()

    def _shape_problems(self) -> Iterator[str]:
        counts = {str(c) for c in COUNTS}
        if set(self.subjects) != set(THINGS):
            yield f"{self.code}: subjects differ from {', '.join(THINGS)}"
        for thing, forms in self.subjects.items():
            if set(forms) != counts or not all(forms.values()):
                yield f"{self.code}: subjects.{thing} needs at least one phrase for 1, 2 and 3"
        if set(self.settings) != set(SETTINGS):
            yield f"{self.code}: settings differ from {', '.join(SETTINGS)}"
        for setting, forms in self.settings.items():
            if set(forms) != {"where", "alone"} or not all(forms.values()):
                yield f"{self.code}: settings.{setting} needs 'where' and 'alone' phrases"
        if set(self.patterns) != counts or not all(self.patterns.values()):
            yield f"{self.code}: patterns needs at least one for 1, 2 and 3"
        for pattern in (p for patterns in self.patterns.values() for p in patterns):
            if pattern.count("{subject}") != 1 or pattern.count("{where}") != 1:
                yield f"{self.code}: pattern {pattern!r} needs {{subject}} and {{where}} once"
        if not self.picture_of or any(form.count("{}") != 1 for form in self.picture_of):
            yield f"{self.code}: picture_of needs templates with {{}} once"
        if len(self.example) != 3:
            yield f"{self.code}: example has {len(self.example)} sentences, should have 3"

    def _text_problems(self) -> Iterator[str]:
        letters = SCRIPT_LETTERS.get(self.script)
        if letters is None:
            yield f"{self.code}: script {self.script!r}, allowed: {', '.join(SCRIPT_LETTERS)}"
            return
        for phrase in self.phrases():
            if not phrase or phrase != phrase.strip() or "  " in phrase:
                yield f"{self.code}: phrase {phrase!r} is empty or has stray spaces"
            if phrase != unicodedata.normalize("NFC", phrase):
                yield f"{self.code}: phrase {phrase!r} is not NFC"
            foreign = {
                char
                for char in phrase.replace("{subject}", "").replace("{where}", "")
                if unicodedata.category(char)[0] == "L" and unicodedata.name(char).split()[0] not in letters
            }
            if foreign:
                yield f"{self.code}: phrase {phrase!r} has letters outside {self.script}: {foreign}"
        where_of: dict[str, str] = {}
        for kind, table in (("subjects", self.subjects), ("settings", self.settings)):
            for key, forms in table.items():
                for form, phrases in forms.items():
                    for phrase in phrases:
                        here = f"{kind}.{key}.{form}"
                        before = where_of.setdefault(phrase, here)
                        if before != here:
                            yield f"{self.code}: {phrase!r} stands for both {before} and {here}"

    def phrases(self) -> Iterator[str]:
        """Every string of the vocabulary that is text of its language."""
        for table in (self.subjects, self.settings):
            for forms in table.values():
                for phrases in forms.values():
                    yield from phrases
        for patterns in self.patterns.values():
            yield from patterns
        yield from self.picture_of
        yield from self.example


def load_vocabulary(path: Path) -> Vocabulary:
    """Reads one vocabulary file.

    Raises:
        ValueError: a key is missing or unknown, or `Vocabulary.problems` finds something; every
            finding is in the message.
    """
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    try:
        vocabulary = Vocabulary(**fields)
    except TypeError as error:
        raise ValueError(f"{path.name}: {error}; see demo/vocabulary/README.md") from error
    problems = list(vocabulary.problems())
    if vocabulary.code != path.stem:
        problems.append(f"{path.name}: code is {vocabulary.code!r}, should be {path.stem!r}")
    if problems:
        raise ValueError("\n".join(problems))
    return vocabulary


@cache
def load_vocabularies(folder: Path = VOCABULARY_DIR) -> dict[str, Vocabulary]:
    """The 40 vocabularies by code, in the order of `LANGUAGES`."""
    return {code: load_vocabulary(folder / f"{code}.json") for code in LANGUAGES}


def caption(vocabulary: Vocabulary, scene: Scene, rng: Random) -> str:
    """One of the ways to say `scene`: any wording, at times as "a picture of", at times capitalised."""
    if scene in RUNNING_EXAMPLE and rng.random() < 0.25:
        return vocabulary.example[RUNNING_EXAMPLE.index(scene)]
    text = rng.choice(vocabulary.captions(scene))
    if scene.thing is not None and rng.random() < 0.25:
        text = rng.choice(vocabulary.picture_of).format(text)
    return capitalised(text, vocabulary.code) if rng.random() < 0.5 else text


def capitalised(text: str, code: str) -> str:
    """`text` with a capital first letter, which is a dotted one for Turkish and Azerbaijani i."""
    dotted = code in ("tr", "az") and text[0] == "i"
    return ("İ" if dotted else text[0].upper()) + text[1:]
