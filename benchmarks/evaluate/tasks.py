"""What is asked: pictures as files, and texts that are captions of them, labels for them, or both."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipserve.errors import SettingsError
from demo.captions import load_vocabularies
from demo.languages import drawn, pool, wordings
from pictures.files import list_pictures, read_contents

Places = npt.NDArray[np.int64]

# Columns of a file of captions; the last may be left out.
PICTURE, CAPTION, LANGUAGE = "picture", "caption", "language"

TEMPLATE = "a photo of {}"


@dataclass(frozen=True)
class Texts:
    """Texts of one group, such as a language.

    Attributes:
        own: place of the picture that each text is a caption of; None: they are labels of no one picture.
        label: place of the text that is right for each picture; None where several are, or not all are known.
    """

    texts: Sequence[str]
    own: Places | None
    label: Places | None


@dataclass(frozen=True)
class Task:
    """What variants are compared on.

    Attributes:
        what: it is, in words.
        pictures: encoded files.
        groups: of texts, by their names.
    """

    what: str
    pictures: Sequence[bytes]
    groups: Mapping[str, Texts]


def demo(seed: int = 0) -> Task:
    """200 fresh scenes of the demo's world, each with a caption in each of its 40 languages."""
    scenes = pool(seed)
    own = np.arange(len(scenes))
    groups = {
        vocabulary.name: Texts(wordings(vocabulary, scenes, seed), own, own)
        for vocabulary in load_vocabularies().values()
    }
    what = f"{len(scenes)} freshly drawn scenes, a caption of each in {len(groups)} languages"
    return Task(what, drawn(scenes, seed), groups)


def read(path: Path, template: str = TEMPLATE) -> Task:
    """A file of captions, or a folder whose folders are labels.

    Args:
        template: that labels are put into.

    Raises:
        SettingsError: it is neither, or says too little.
        OSError: it, or a picture, cannot be read.
    """
    return labelled(path, template) if path.is_dir() else captioned(path)


def captioned(path: Path) -> Task:
    """A CSV file with the columns `picture`, `caption` and perhaps `language`; a picture may have several.

    Raises:
        SettingsError, OSError: see `read`.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames or []
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: no CSV in UTF-8 ({error})") from error
    if not {PICTURE, CAPTION} <= set(columns):
        raise SettingsError(
            f"{path}: its first line names the columns {', '.join(columns) or 'none'}; wanted are "
            f"{PICTURE},{CAPTION} and perhaps {LANGUAGE}"
        )
    names: dict[str, int] = {}
    found: dict[str, tuple[list[str], list[int]]] = {}
    for number, row in enumerate(rows, 2):
        if not row[PICTURE] or not row[CAPTION]:
            raise SettingsError(f"{path}: row {number} lacks a picture or a caption")
        texts, own = found.setdefault(row.get(LANGUAGE) or "captions", ([], []))
        texts.append(row[CAPTION])
        own.append(names.setdefault(row[PICTURE], len(names)))
    _check(path, len(names), max((len(texts) for texts, _ in found.values()), default=0), "captions")
    pictures = [(path.parent / name).read_bytes() for name in names]
    groups = {name: _captions(texts, own, len(names)) for name, (texts, own) in found.items()}
    return Task(f"{len(names)} pictures of {path.name}, {len(rows)} captions", pictures, groups)


def _captions(texts: Sequence[str], own: Sequence[int], pictures: int) -> Texts:
    places = np.array(own)
    each = len(texts) == pictures and len(set(own)) == pictures
    return Texts(texts, places, np.argsort(places) if each else None)


def labelled(folder: Path, template: str = TEMPLATE) -> Task:
    """A folder of folders of pictures; their names are the labels, with blanks for underscores.

    Raises:
        SettingsError, OSError: see `read`.
    """
    if "{}" not in template:
        raise SettingsError(f"template {template!r}: {{}} stands where a label goes, as in {TEMPLATE!r}")
    listed = list_pictures(folder).pictures
    below = [Path(os.fsdecode(found.location)).relative_to(folder.resolve()).parts for found in listed]
    # What lies in the folder itself has no label.
    files = [(parts[0], found) for parts, found in zip(below, listed, strict=True) if len(parts) > 1]
    labels = sorted({label for label, _ in files})
    _check(folder, len(files), len(labels), "labels (folders with pictures)")
    label = np.array([labels.index(name) for name, _ in files])
    texts = [template.format(name.replace("_", " ")) for name in labels]
    pictures = [read_contents(found).data for _, found in files]
    what = f"{len(files)} pictures of {folder.name}, {len(labels)} labels"
    return Task(what, pictures, {"labels": Texts(texts, None, label)})


def _check(path: Path, pictures: int, texts: int, what: str) -> None:
    if pictures < 2 or texts < 2:
        raise SettingsError(
            f"{path}: {pictures} pictures and {texts} {what}; wanted are at least two of each"
        )
