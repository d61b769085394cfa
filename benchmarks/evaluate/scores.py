"""How well vectors do a task, and how alike two rankings are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.evaluate.tasks import Places, Task, Texts
from clipserve.encoder_spec import FloatArray
from clipserve.similarity import cosine_similarity, unit_vectors
from demo.languages import ranks

Cosines = npt.NDArray[np.float64]

FIRST = 5  # of a ranking


@dataclass(frozen=True)
class Vectors:
    """What one variant makes of a task: embeddings `[N, D]` of its pictures, and of each group's texts."""

    pictures: FloatArray
    texts: Mapping[str, FloatArray]


def scores(task: Task, found: Vectors, original: Vectors) -> dict[str, dict[str, float]]:
    """Of each group, shares from 0 to 1, those that its texts allow.

    `r1`, `r5`: a caption finds its picture first, or among five. `top1`: a picture finds its own text first.
    `same_first`, `same_five`: what the original finds first is first here too, and how many of its first
    five are among the first five here; of pictures for captions, else of labels for pictures.
    """
    return {
        name: _scores(texts, _cosines(found, name), _cosines(original, name))
        for name, texts in task.groups.items()
    }


def _cosines(vectors: Vectors, group: str) -> Cosines:
    """Of every text of a group with every picture: `[texts, pictures]`."""
    cosines: Cosines = cosine_similarity(vectors.texts[group], vectors.pictures)
    return cosines


def _scores(texts: Texts, cosines: Cosines, original: Cosines) -> dict[str, float]:
    found: dict[str, float] = {}
    if texts.own is not None:
        places = ranks(cosines, texts.own)
        found |= {"r1": float((places < 1).mean()), "r5": float((places < FIRST).mean())}
    if texts.label is not None:
        found["top1"] = float((ranks(cosines.T, texts.label) < 1).mean())
    if texts.own is None:
        cosines, original = cosines.T, original.T
    first, first_of_original = _first(cosines), _first(original)
    found["same_first"] = float((first[:, 0] == first_of_original[:, 0]).mean())
    shared = (first[:, :, None] == first_of_original[:, None, :]).any(2)
    found["same_five"] = float(shared.mean())
    return found


def _first(cosines: Cosines) -> Places:
    """Each row's first columns, the most alike first; of equal ones the first."""
    return np.argsort(-cosines, axis=1, kind="stable")[:, :FIRST]


def least_cosine(found: Vectors, original: Vectors) -> float:
    """The least cosine of any vector to the original's of the same picture or text."""
    pairs = [(found.pictures, original.pictures), *((found.texts[n], original.texts[n]) for n in found.texts)]
    return min(float((unit_vectors(a) * unit_vectors(b)).sum(1).min()) for a, b in pairs)


def means(of_groups: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean over the groups, of what all of them have."""
    every = list(of_groups.values())
    names = [name for name in every[0] if all(name in of for of in every)]
    return {name: float(np.mean([of[name] for of in every])) for name in names}


def main_score(of_groups: Mapping[str, Mapping[str, Any]]) -> str:
    """What groups are told apart by: R@1 where there are captions, else the accuracy."""
    return "r1" if all("r1" in of for of in of_groups.values()) else "top1"
