"""What is asked for, as people write it: texts and pictures, with + and −, and weights.

`beach + ./dog.jpg - 0.5*people` wants pictures that look like a beach and like a picture, and half as much
unlike people. A sign stands alone, with white space at both sides, so that `x-ray` is a word; a text in
double quotes is taken as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipserve.encoder_spec import FloatArray
from search.errors import SearchError

PLUS, MINUS = "+＋", "-−－"  # as on a keyboard, as mathematics has it, and of full width

MAX_WEIGHT = 100.0

# Shorter than any sum that cancels itself out, longer than what rounding leaves of one that does.
LEAST_NORM = 1e-4

_QUOTED_OR_SIGN = re.compile(rf'"[^"]*"|(?:^|(?<=\s))[{re.escape(PLUS + MINUS)}](?=\s|$)')
_WEIGHT = re.compile(r"([0-9]+(?:[.,][0-9]+)?)\s*[*×]\s*")
_PICTURE = re.compile(r"/|\./|\.\./|~/")


@dataclass(frozen=True)
class Term:
    """A part of what is asked for.

    Attributes:
        weight: negative for what is not wanted; not zero.
        text: what the pictures show, or the path of a picture that they are like.
        is_picture: which of the two.
    """

    weight: float
    text: str
    is_picture: bool


def parse(query: str) -> list[Term]:
    """The terms of a query, at least one.

    Raises:
        SearchError: nothing follows a sign, or a weight is out of its range.
    """
    signs = [match for match in _QUOTED_OR_SIGN.finditer(query) if match[0][0] != '"']
    starts = [0, *(match.end() for match in signs)]
    ends = [*(match.start() for match in signs), len(query)]
    terms = []
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        text = query[start:end].strip()
        sign = signs[number - 1][0] if number else "+"
        if text:
            terms.append(_term(text, -1.0 if sign in MINUS else 1.0))
        elif number or not signs:
            raise SearchError(
                f"{query!r}: nothing follows the {sign}; write 'beach + dog - people', or put a text with a "
                "sign in it into double quotes"
            )
    return terms


def _term(text: str, sign: float) -> Term:
    weight = 1.0
    if weighted := _WEIGHT.match(text):
        weight = float(weighted[1].replace(",", "."))
        text = text[weighted.end() :]
        if not 0 < weight <= MAX_WEIGHT or not text:
            raise SearchError(
                f"{weighted[1]!r}: a weight is more than 0, at most {MAX_WEIGHT:g}, and of something: 2*dog"
            )
    quoted = len(text) > 2 and text[0] == text[-1] == '"'
    return Term(sign * weight, text[1:-1] if quoted else text, not quoted and bool(_PICTURE.match(text)))


def combined(weights: Sequence[float], embeddings: Sequence[FloatArray]) -> FloatArray:
    """The weighted sum of embeddings, float32 `[D]` each, L2-normalised.

    Raises:
        SearchError: it is nothing, since what is wanted and what is not are the same.
    """
    total = np.asarray(np.array(weights, np.float32) @ np.stack(embeddings), np.float32)
    norm = np.linalg.norm(total)
    if norm < LEAST_NORM:
        raise SearchError("what is wanted and what is not are the same; leave one of them out")
    return np.asarray(total / norm, np.float32)
