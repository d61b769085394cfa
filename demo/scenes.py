"""Drawn pictures of the demo world's scenes, from a seed; `python -m demo.scenes` draws the example's.

Everything is laid out in *units*: the central square of the picture is [0, 1] x [0, 1], x to the right
and y down, so that any size shows the same scene and a CLIP processor's centre crop loses nothing of it.
Things keep inside that square, never overlap, and are large, because a vision transformer with 16-pixel
patches has to count them.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import aggdraw
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from demo.world import RUNNING_EXAMPLE, Scene

Points = npt.NDArray[np.float64]  # (n, 2): x, y
Point = tuple[float, float]
Colour = tuple[int, int, int]  # red, green, blue, 0..255

PICTURES = Path(__file__).parent / "pictures"
# The pictures of the running example, in its order: file name and seed.
EXAMPLES = (
    ("two-dogs-in-the-snow.jpg", 113),
    ("a-cat-on-a-table.jpg", 104),
    ("london-at-night.jpg", 104),
)

STYLES = ("flat", "outlined", "soft", "textured")

BLACK: Colour = (28, 26, 30)
WHITE: Colour = (248, 247, 243)


# --- shapes ------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A filled outline (width 0) or a stroke of a drawing; `colour` names an entry of its palette.

    `rim` parts make up the silhouette, which gets an outline; the rest lies inside it.
    """

    points: Points
    colour: str
    width: float = 0.0
    rim: bool = True


def _poly(*points: Point) -> Points:
    return np.array(points)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return _poly((left, top), (right, top), (right, bottom), (left, bottom))


def _oval(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Points:
    """An ellipse turned by `turn` degrees."""
    return _arc(x, y, rx, ry, 0, 360, turn)[:-1]


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float, turn: float = 0.0) -> Points:
    """Part of an ellipse from angle `start` to `end` in degrees, clockwise from the right."""
    unit = _unit_arc(start, end)
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    turned: Points = unit @ np.array(((rx * c, rx * s), (-ry * s, ry * c)))
    return _moved(turned, x, y)


@lru_cache(64)
def _unit_arc(start: float, end: float) -> Points:
    t = np.radians(np.linspace(start, end, max(7, round(abs(end - start) / 10) + 1)))
    return np.stack([np.cos(t), np.sin(t)], axis=1)


def _spline(points: Sequence[Point], closed: bool) -> Points:
    """A Catmull-Rom curve through `points`, five steps a segment."""
    p = np.array(points)
    p = np.vstack([p[-1], p, p[:2]]) if closed else np.vstack([p[0], p, p[-1]])
    t = np.arange(5)[:, None] / 5
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = b + (c - a) * t / 2 + (a - 2.5 * b + 2 * c - d / 2) * t**2
    curve = curve + (1.5 * (b - c) + (d - a) / 2) * t**3
    flat = curve.reshape(-1, 2)
    return flat if closed else np.vstack([flat, p[-1]])


def _blob(*points: Point) -> Points:
    return _spline(points, closed=True)


def _curve(*points: Point) -> Points:
    return _spline(points, closed=False)


def _mirrored(points: Points) -> Points:
    return points * (-1, 1)


def _moved(points: Points, x: float, y: float) -> Points:
    moved: Points = points + np.array((x, y))
    return moved


def _inner(points: Points, colour: str, width: float = 0.0) -> Part:
    return Part(points, colour, width, rim=False)


# --- the sixteen things, feet at y = 0, facing right ---------------------------------------------


def _dog_standing() -> list[Part]:
    return [
        Part(_curve((-0.55, -0.62), (-0.8, -0.78), (-0.86, -1.05)), "main", 0.12),
        Part(_curve((-0.3, -0.45), (-0.36, -0.2), (-0.3, -0.04)), "dark", 0.15),
        Part(_curve((0.3, -0.45), (0.27, -0.2), (0.3, -0.04)), "dark", 0.15),
        Part(_oval(-0.05, -0.56, 0.6, 0.24), "main"),
        Part(_poly((0.35, -0.6), (0.62, -1.0)), "main", 0.32),
        Part(_curve((-0.48, -0.5), (-0.54, -0.25), (-0.48, -0.04)), "main", 0.17),
        Part(_curve((0.45, -0.5), (0.45, -0.2), (0.47, -0.04)), "main", 0.17),
        Part(_oval(0.66, -1.04, 0.25, 0.21), "main"),
        Part(_oval(0.9, -0.97, 0.2, 0.11), "light"),
        Part(_oval(1.06, -1.02, 0.06, 0.05), "black"),
        Part(_blob((0.5, -1.22), (0.64, -1.12), (0.6, -0.8), (0.46, -0.74), (0.4, -0.98)), "dark"),
        _inner(_oval(0.76, -1.08, 0.045, 0.05), "black"),
        _inner(_poly((0.38, -0.72), (0.58, -0.62)), "accent", 0.09),
    ]


def _dog_sitting() -> list[Part]:
    return [
        Part(_curve((-0.4, -0.1), (-0.8, -0.15), (-0.95, -0.45)), "main", 0.13),
        Part(
            _blob((-0.5, -0.02), (-0.55, -0.35), (-0.25, -0.75), (0.05, -1.15), (0.32, -1.0),
                  (0.32, -0.5), (0.25, -0.02)),
            "main",
        ),
        Part(_oval(-0.25, -0.22, 0.3, 0.22), "dark"),
        Part(_poly((0.22, -0.6), (0.26, -0.05)), "light", 0.17),
        Part(_oval(0.34, -0.05, 0.13, 0.06), "light"),
        Part(_oval(0.2, -1.25, 0.27, 0.24), "main"),
        Part(_oval(0.48, -1.18, 0.21, 0.12), "light"),
        Part(_oval(0.66, -1.23, 0.06, 0.05), "black"),
        Part(_blob((0.02, -1.46), (0.16, -1.38), (0.12, -1.0), (-0.04, -0.92), (-0.1, -1.2)),
             "dark"),
        _inner(_oval(0.31, -1.31, 0.045, 0.05), "black"),
        _inner(_poly((-0.02, -0.93), (0.3, -0.9)), "accent", 0.1),
        Part(_blob((0.46, -1.09), (0.54, -1.08), (0.54, -0.94), (0.47, -0.93)), "pink"),
    ]  # fmt: skip


def _cat_face(x: float, y: float, r: float) -> list[Part]:
    """Head from the front: round, pointed ears, green eyes, whiskers."""
    ear = _poly((0.25, -0.7), (0.95, -1.5), (1.0, -0.2))
    inside = _poly((0.5, -0.75), (0.85, -1.2), (0.88, -0.5))
    eye = _oval(0.4, -0.12, 0.17, 0.2)
    pupil = _oval(0.4, -0.12, 0.06, 0.18)
    whisker = _poly((0.3, 0.35), (1.25, 0.2)), _poly((0.3, 0.45), (1.2, 0.6))
    here = np.array((x, y))
    parts = [Part(side(ear) * r + here, "main") for side in (np.array, _mirrored)]
    parts.append(Part(_oval(x, y, 1.05 * r, 0.9 * r), "main"))
    for side in (np.array, _mirrored):
        parts += [
            _inner(side(inside) * r + here, "pink"),
            _inner(side(eye) * r + here, "eye"),
            _inner(side(pupil) * r + here, "black"),
            *(_inner(side(w) * r + here, "light", 0.06 * r) for w in whisker),
        ]
    parts.append(_inner(_poly((-0.13, 0.2), (0.13, 0.2), (0, 0.36)) * r + here, "pink"))
    return parts


def _cat_sitting() -> list[Part]:
    return [
        Part(_curve((0.2, -0.09), (0.65, -0.08), (0.85, -0.35), (0.7, -0.68)), "dark", 0.14),
        Part(
            _blob((-0.35, -0.02), (-0.46, -0.35), (-0.25, -0.8), (0, -0.95), (0.25, -0.8),
                  (0.46, -0.35), (0.35, -0.02)),
            "main",
        ),
        _inner(_oval(0, -0.5, 0.19, 0.3), "light"),
        Part(_oval(-0.17, -0.06, 0.17, 0.09), "light"),
        Part(_oval(0.17, -0.06, 0.17, 0.09), "light"),
        *_cat_face(0, -1.12, 0.36),
    ]  # fmt: skip


def _cat_walking() -> list[Part]:
    return [
        Part(_curve((-0.55, -0.55), (-0.85, -0.8), (-0.72, -1.1), (-0.86, -1.35)), "main", 0.12),
        Part(_poly((-0.3, -0.45), (-0.22, -0.04)), "dark", 0.13),
        Part(_poly((0.3, -0.45), (0.24, -0.04)), "dark", 0.13),
        Part(_oval(-0.05, -0.53, 0.6, 0.21), "main"),
        Part(_poly((-0.5, -0.5), (-0.55, -0.04)), "main", 0.14),
        Part(_poly((0.42, -0.5), (0.46, -0.04)), "main", 0.14),
        *(_inner(_poly((x, -0.72), (x - 0.03, -0.5)), "dark", 0.06) for x in (-0.3, -0.12, 0.06)),
        *_cat_face(0.62, -0.8, 0.3),
    ]


def _bird_perched() -> list[Part]:
    return [
        Part(_poly((-0.02, -0.3), (-0.05, -0.02), (0.12, -0.02)), "orange", 0.06),
        Part(_poly((0.14, -0.3), (0.14, -0.02), (0.3, -0.02)), "orange", 0.06),
        Part(_poly((-0.3, -0.62), (-0.98, -0.4), (-0.92, -0.2), (-0.25, -0.34)), "dark"),
        Part(_oval(0.02, -0.56, 0.46, 0.31, -20), "main"),
        Part(_poly((0.5, -1.02), (0.88, -0.9), (0.5, -0.8)), "orange"),
        Part(_oval(0.38, -0.93, 0.24, 0.22), "main"),
        _inner(_oval(0.2, -0.5, 0.22, 0.18, -20), "light"),
        _inner(_blob((0.12, -0.72), (-0.1, -0.76), (-0.5, -0.42), (-0.1, -0.38)), "dark"),
        _inner(_oval(0.45, -0.98, 0.06, 0.06), "white"),
        _inner(_oval(0.46, -0.98, 0.035, 0.035), "black"),
    ]


def _bird_flying() -> list[Part]:
    return [
        Part(_poly((0.1, -0.5), (0.4, -1.2), (0.5, -0.5)), "dark"),
        Part(_poly((-0.4, -0.42), (-1.0, -0.52), (-1.05, -0.22), (-0.4, -0.25)), "dark"),
        Part(_oval(0, -0.36, 0.58, 0.22, -6), "main"),
        Part(_poly((0.72, -0.6), (1.06, -0.46), (0.7, -0.38)), "orange"),
        Part(_oval(0.58, -0.5, 0.22, 0.19), "main"),
        _inner(_oval(0.2, -0.27, 0.3, 0.11, -6), "light"),
        Part(_blob((0.32, -0.45), (0.15, -0.85), (-0.45, -1.25), (-0.4, -0.8), (-0.2, -0.42)),
             "dark"),
        _inner(_oval(0.65, -0.54, 0.05, 0.05), "black"),
    ]  # fmt: skip


def _fish(tall: float) -> list[Part]:
    body = [(0.95, -0.5), (0.6, -0.78), (0.1, -0.9), (-0.5, -0.58), (-0.5, -0.42), (0.1, -0.1),
            (0.6, -0.22)]  # fmt: skip
    parts = [
        Part(_poly((-0.35, -0.5), (-1.0, -0.95), (-0.85, -0.5), (-1.0, -0.05)), "accent"),
        Part(_poly((0.4, -0.75), (0.05, -1.15), (-0.3, -0.65)), "accent"),
        Part(_poly((0.15, -0.2), (-0.12, 0.08), (-0.2, -0.3)), "accent"),
        Part(_blob(*body), "main"),
        _inner(_arc(0.28, -0.5, 0.16, 0.3, 110, 250), "light", 0.1),
        _inner(_arc(-0.02, -0.5, 0.14, 0.26, 110, 250), "light", 0.1),
        _inner(_poly((0.12, -0.46), (-0.12, -0.36), (0.08, -0.3)), "accent"),
        _inner(_oval(0.62, -0.58, 0.11, 0.11), "white"),
        _inner(_oval(0.65, -0.58, 0.06, 0.06), "black"),
        _inner(_poly((0.92, -0.44), (0.72, -0.4)), "dark", 0.05),
    ]
    return [part._replace(points=part.points * (1, tall)) for part in parts]


def _wheel(x: float, r: float) -> list[Part]:
    return [Part(_oval(x, -r, r, r), "black"), _inner(_oval(x, -r, r / 2, r / 2), "grey")]


def _car_saloon() -> list[Part]:
    cabin = _poly((-0.6, -0.55), (-0.4, -0.95), (0.25, -0.95), (0.55, -0.55))
    return [
        Part(cabin, "main"),
        Part(_blob((-1.05, -0.2), (-1.0, -0.55), (-0.5, -0.62), (0.5, -0.6), (0.95, -0.5),
                   (1.08, -0.2), (0.6, -0.15), (-0.6, -0.15)), "main"),
        _inner(_poly((-0.46, -0.58), (-0.33, -0.86), (-0.08, -0.86), (-0.08, -0.58)), "glass"),
        _inner(_poly((0.02, -0.58), (0.02, -0.86), (0.2, -0.86), (0.4, -0.58)), "glass"),
        _inner(_poly((-1.0, -0.34), (1.0, -0.34)), "dark", 0.05),
        _inner(_oval(0.98, -0.43, 0.07, 0.07), "yellow"),
        *_wheel(-0.58, 0.23),
        *_wheel(0.58, 0.23),
    ]  # fmt: skip


def _car_van() -> list[Part]:
    return [
        Part(_blob((-0.95, -0.2), (-0.96, -0.95), (-0.8, -1.08), (0.25, -1.08), (0.5, -0.98),
                   (0.75, -0.6), (0.98, -0.52), (1.0, -0.18), (0.0, -0.14)), "main"),
        _inner(_box(-0.82, -0.92, -0.42, -0.62), "glass"),
        _inner(_box(-0.32, -0.92, 0.06, -0.62), "glass"),
        _inner(_poly((0.16, -0.92), (0.4, -0.92), (0.62, -0.62), (0.16, -0.62)), "glass"),
        _inner(_box(-0.95, -0.5, 0.95, -0.38), "light"),
        _inner(_oval(0.92, -0.38, 0.07, 0.07), "yellow"),
        *_wheel(-0.55, 0.22),
        *_wheel(0.58, 0.22),
    ]  # fmt: skip


def _bicycle() -> list[Part]:
    parts = []
    for x in (-0.62, 0.62):
        for angle in (20, 80, 140):
            dx, dy = 0.4 * math.cos(math.radians(angle)), 0.4 * math.sin(math.radians(angle))
            parts.append(_inner(_poly((x - dx, -0.44 - dy), (x + dx, -0.44 + dy)), "grey", 0.025))
        parts.append(Part(_arc(x, -0.44, 0.4, 0.4, 0, 360), "black", 0.1))
    crank, seat, head = (-0.1, -0.42), (-0.28, -0.98), (0.42, -0.95)
    return [
        *parts,
        Part(_poly((-0.62, -0.44), crank, seat, (-0.62, -0.44)), "main", 0.09),
        Part(_poly(crank, head, (-0.25, -0.88)), "main", 0.09),
        Part(_poly((0.62, -0.44), (0.38, -1.12)), "main", 0.09),
        Part(_curve((0.38, -1.12), (0.52, -1.2), (0.62, -1.1)), "black", 0.09),
        Part(_poly((-0.46, -1.03), (-0.12, -1.0)), "black", 0.13),
        _inner(_oval(-0.1, -0.42, 0.1, 0.1), "grey"),
    ]


def _boat_sailing() -> list[Part]:
    return [
        Part(_poly((-0.02, -0.35), (-0.02, -1.75)), "wood", 0.08),
        Part(_poly((0.06, -1.65), (0.85, -0.5), (0.06, -0.5)), "light"),
        Part(_poly((-0.1, -1.5), (-0.1, -0.5), (-0.68, -0.5)), "accent"),
        Part(_poly((-0.95, -0.4), (1.05, -0.4), (0.7, -0.02), (-0.65, -0.02)), "main"),
        _inner(_poly((-0.9, -0.3), (0.92, -0.3)), "white", 0.07),
    ]


def _boat_fishing() -> list[Part]:
    return [
        Part(_box(-0.05, -1.25, 0.16, -0.85), "accent"),
        Part(_box(-0.4, -0.9, 0.42, -0.4), "white"),
        Part(_box(-0.48, -0.97, 0.5, -0.86), "accent"),
        *(_inner(_oval(x, -0.66, 0.1, 0.1), "glass") for x in (-0.2, 0.16)),
        Part(_poly((-1.0, -0.5), (-0.6, -0.42), (0.7, -0.42), (1.15, -0.6), (0.8, -0.02),
                   (-0.8, -0.02)), "main"),
        _inner(_poly((-0.9, -0.28), (0.9, -0.28)), "light", 0.08),
    ]  # fmt: skip


def _house(wide: float, tall: float) -> list[Part]:
    window = _box(-0.14, -0.14, 0.14, 0.14)
    parts = [
        Part(_box(0.3 * wide, -tall - 0.62, 0.3 * wide + 0.2, -tall), "dark"),
        Part(_box(-wide, -tall, wide, 0), "main"),
        Part(_poly((-wide - 0.18, -tall), (0, -tall - 0.65), (wide + 0.18, -tall)), "accent"),
        _inner(_box(-0.15, -0.5, 0.15, 0), "wood"),
    ]
    for x in (-0.6 * wide, 0.6 * wide):
        parts.append(_inner(_moved(window, x, -0.6 * tall), "yellow"))
        parts.append(_inner(_poly((x, -0.6 * tall - 0.14), (x, -0.6 * tall + 0.14)), "white", 0.05))
    return parts


def _tree_round() -> list[Part]:
    return [
        Part(_poly((-0.13, 0), (-0.08, -0.8), (0.08, -0.8), (0.14, 0)), "wood"),
        Part(_poly((0, -0.6), (0.3, -0.95)), "wood", 0.09),
        Part(_oval(-0.38, -0.95, 0.36, 0.32), "main"),
        Part(_oval(0.38, -0.98, 0.36, 0.32), "main"),
        Part(_oval(0, -1.3, 0.5, 0.45), "main"),
        _inner(_oval(-0.12, -1.42, 0.26, 0.2), "light"),
        _inner(_oval(0.35, -0.95, 0.2, 0.14), "dark"),
        _inner(_oval(-0.4, -0.88, 0.2, 0.14), "dark"),
    ]


def _tree_fir() -> list[Part]:
    return [
        Part(_box(-0.12, -0.4, 0.12, 0), "wood"),
        *(
            Part(_poly((-w, y), (0, y - 0.72), (w, y)), colour)
            for w, y, colour in (
                (0.68, -0.28, "dark"),
                (0.54, -0.68, "main"),
                (0.4, -1.08, "light"),
            )
        ),
    ]


def _flower(petals: int) -> list[Part]:
    leaf = _blob((0.02, -0.3), (0.2, -0.52), (0.48, -0.56), (0.3, -0.3))
    around = [360 / petals * i - 90 for i in range(petals)]
    return [
        Part(_curve((0, 0), (0.05, -0.5), (0, -1.1)), "leaf", 0.1),
        Part(leaf, "leaf"),
        Part(_moved(_mirrored(leaf), 0.04, 0.1), "leaf"),
        *(
            Part(
                _oval(0.36 * math.cos(math.radians(a)), -1.2 + 0.36 * math.sin(math.radians(a)),
                      0.27, 1.05 / petals, a),
                "main",
            )
            for a in around
        ),
        _inner(_oval(0, -1.2, 0.19, 0.19), "accent"),
    ]  # fmt: skip


def _tulip() -> list[Part]:
    leaf = _blob((0.0, -0.05), (0.22, -0.45), (0.45, -0.85), (0.42, -0.4), (0.2, -0.02))
    return [
        Part(_poly((0, 0), (0, -0.95)), "leaf", 0.1),
        Part(leaf, "leaf"),
        Part(_mirrored(leaf), "leaf"),
        Part(_poly((-0.18, -1.2), (0, -1.68), (0.18, -1.2)), "light"),
        Part(_blob((0, -0.85), (-0.36, -1.05), (-0.4, -1.62), (-0.12, -1.3), (0, -1.1)), "main"),
        Part(_blob((0, -0.85), (0.36, -1.05), (0.4, -1.62), (0.12, -1.3), (0, -1.1)), "dark"),
    ]


def _apple() -> list[Part]:
    half = [(0, -1.0), (0.3, -1.12), (0.58, -0.95), (0.62, -0.6), (0.45, -0.15), (0.2, -0.01)]
    other = [(-x, y) for x, y in half[:0:-1]]
    return [
        Part(_curve((0, -0.92), (0.02, -1.15), (0.12, -1.32)), "wood", 0.09),
        Part(_blob((0.06, -1.1), (0.22, -1.36), (0.55, -1.4), (0.36, -1.14)), "leaf"),
        Part(_blob(*half, (0, -0.05), *other), "main"),
        _inner(_blob((0.3, -0.1), (0.55, -0.5), (0.5, -0.25)), "dark"),
        _inner(_oval(-0.3, -0.75, 0.1, 0.19, 20), "light"),
        _inner(_arc(0, -1.05, 0.2, 0.1, 20, 160), "dark", 0.04),
    ]


def _cup(saucer: bool) -> list[Part]:
    under = [Part(_oval(0, -0.04, 0.75, 0.1), "light")] if saucer else []
    return [
        *under,
        Part(_arc(0.42, -0.55, 0.32, 0.27, -100, 120), "main", 0.12),
        Part(_blob((-0.5, -0.95), (-0.48, -0.4), (-0.34, -0.06), (0, -0.02), (0.34, -0.06),
                   (0.48, -0.4), (0.5, -0.95), (0, -0.97)), "main"),
        Part(_oval(0, -0.95, 0.5, 0.13), "light"),
        _inner(_oval(0, -0.94, 0.42, 0.09), "wood"),
        _inner(_curve((-0.47, -0.5), (0, -0.42), (0.47, -0.5)), "accent", 0.12),
    ]  # fmt: skip


def _ball_beach() -> list[Part]:
    parts = [Part(_oval(0, -0.5, 0.5, 0.5), "white")]
    for i in range(3):
        rim = _arc(0, -0.5, 0.5, 0.5, 120 * i, 120 * i + 60)
        colour = ("main", "accent", "main")[i]
        parts.append(_inner(np.vstack([rim, [(-0.1, -0.6)]]), colour))
    return [*parts, _inner(_oval(-0.1, -0.6, 0.08, 0.08), "white")]


def _ball_foot() -> list[Part]:
    parts = [Part(_oval(0, -0.5, 0.5, 0.5), "white")]
    for i in range(5):
        c, s = math.cos(math.radians(72 * i - 90)), math.sin(math.radians(72 * i - 90))
        parts.append(_inner(_poly((0.1 * c, -0.5 + 0.1 * s), (0.4 * c, -0.5 + 0.4 * s)), "black", 0.03))
        rim = _arc(0, -0.5, 0.49, 0.49, 72 * i - 108, 72 * i - 72)
        parts.append(_inner(np.vstack([rim, [(0.32 * c, -0.5 + 0.32 * s)]]), "black"))
    return [*parts, _inner(_arc(0, -0.5, 0.17, 0.17, -90, 198)[::4], "black")]  # fmt: skip


def _ball_striped() -> list[Part]:
    return [
        Part(_oval(0, -0.5, 0.5, 0.5), "main"),
        _inner(_curve((-0.44, -0.72), (0, -0.6), (0.44, -0.72)), "white", 0.1),
        _inner(_curve((-0.46, -0.36), (0, -0.2), (0.46, -0.36)), "accent", 0.12),
        _inner(_oval(-0.18, -0.85, 0.09, 0.05, -25), "light"),
    ]


def _star(inner: float) -> list[Part]:
    tips = [
        (r * math.sin(math.pi * i / 5), -0.5 - r * math.cos(math.pi * i / 5))
        for i, r in enumerate([0.6, inner] * 5)
    ]
    facets = [_inner(_poly((0, -0.5), tips[i], tips[i + 1]), "light") for i in range(0, 10, 2)]
    return [Part(_poly(*tips), "main"), *facets]


def _book_open() -> list[Part]:
    page = _blob((0, -0.12), (0.45, -0.22), (0.92, -0.12), (0.95, -0.5), (0.92, -0.82),
                 (0.45, -0.92), (0, -0.8), (0, -0.4))  # fmt: skip
    parts = [Part(_poly((-1.02, -0.82), (1.02, -0.82), (1.02, 0), (-1.02, 0)), "main")]
    for side in (np.array, _mirrored):
        parts.append(Part(side(page), "white"))
        for y in (-0.7, -0.54, -0.38):
            parts.append(_inner(side(_poly((0.15, y + 0.03), (0.8, y))), "grey", 0.05))
    return [*parts, _inner(_poly((0, -0.84), (0, -0.08)), "dark", 0.05)]


def _book_closed() -> list[Part]:
    return [
        Part(_poly((0.45, -1.25), (0.62, -1.35), (0.62, -0.1), (0.45, 0)), "white"),
        Part(_poly((-0.5, -1.25), (-0.3, -1.35), (0.62, -1.35), (0.45, -1.25)), "light"),
        Part(_box(-0.5, -1.25, 0.45, 0), "main"),
        _inner(_box(-0.5, -1.25, -0.34, 0), "dark"),
        _inner(_box(-0.18, -1.05, 0.3, -0.75), "white"),
        _inner(_poly((-0.1, -0.95), (0.22, -0.95)), "dark", 0.05),
        _inner(_poly((-0.1, -0.85), (0.14, -0.85)), "dark", 0.05),
        _inner(_oval(0.06, -0.4, 0.14, 0.14), "accent"),
    ]


def _umbrella() -> list[Part]:
    scallops = [_arc(x, -0.85, 0.2, 0.12, 360, 180) for x in (0.6, 0.2, -0.2, -0.6)]
    canopy = np.vstack([_arc(0, -0.85, 0.8, 0.72, 180, 360), *scallops])
    return [
        Part(_curve((0, -0.9), (0, -0.25), (0.04, -0.05), (0.2, -0.04), (0.26, -0.2)), "wood", 0.08),
        Part(_poly((0, -1.5), (0, -1.7)), "wood", 0.07),
        Part(canopy, "main"),
        _inner(_poly((0, -1.57), (-0.4, -0.85), (-0.8, -0.85), (-0.65, -1.25)), "accent"),
        _inner(_poly((0, -1.57), (0.4, -0.85), (0, -0.85)), "accent"),
    ]


@dataclass(frozen=True)
class Kind:
    """How one thing may look.

    Attributes:
        poses: Its drawings.
        mains: (hue, saturation, value) of its usual colours, each 0..1; every picture varies them.
        tilt: Largest rotation either way, in degrees.
    """

    poses: tuple[tuple[Part, ...], ...]
    mains: tuple[tuple[float, float, float], ...]
    tilt: float = 4.0


def _kind(*poses: list[Part], mains: Iterable[tuple[float, float, float]], tilt: float = 4.0) -> Kind:
    return Kind(tuple(tuple(pose) for pose in poses), tuple(mains), tilt)


BRIGHT = tuple((h / 10, 0.8, 0.88) for h in range(10))
KINDS = {
    "dog": _kind(
        _dog_standing(),
        _dog_sitting(),
        mains=[(0.07, 0.65, 0.6), (0.09, 0.5, 0.8), (0.06, 0.6, 0.4), (0.08, 0.15, 0.85)],
    ),
    "cat": _kind(
        _cat_sitting(),
        _cat_walking(),
        mains=[(0.08, 0.8, 0.92), (0.6, 0.06, 0.55), (0.6, 0.1, 0.25), (0.1, 0.1, 0.92)],
    ),
    "bird": _kind(
        _bird_perched(),
        _bird_flying(),
        mains=[(0.58, 0.75, 0.85), (0.0, 0.75, 0.8), (0.15, 0.8, 0.92), (0.48, 0.6, 0.7)],
        tilt=8,
    ),
    "fish": _kind(
        _fish(1.0),
        _fish(0.75),
        mains=[(0.07, 0.85, 0.95), (0.53, 0.7, 0.85), (0.0, 0.75, 0.9), (0.8, 0.5, 0.8)],
        tilt=14,
    ),
    "car": _kind(_car_saloon(), _car_van(), mains=BRIGHT),
    "bicycle": _kind(_bicycle(), mains=BRIGHT),
    "boat": _kind(_boat_sailing(), _boat_fishing(), mains=BRIGHT, tilt=6),
    "house": _kind(
        _house(0.7, 0.85),
        _house(0.95, 0.75),
        mains=[(0.1, 0.3, 0.95), (0.0, 0.45, 0.8), (0.55, 0.25, 0.9), (0.13, 0.5, 0.95)],
        tilt=1,
    ),
    "tree": _kind(_tree_round(), _tree_fir(), mains=[(0.3, 0.75, 0.62), (0.25, 0.8, 0.7), (0.36, 0.65, 0.5)]),
    "flower": _kind(
        _flower(6),
        _flower(8),
        _tulip(),
        mains=[(0.93, 0.65, 0.95), (0.0, 0.85, 0.9), (0.78, 0.55, 0.9), (0.13, 0.85, 1.0)],
        tilt=8,
    ),
    "apple": _kind(_apple(), mains=[(0.0, 0.85, 0.85), (0.99, 0.8, 0.75), (0.24, 0.75, 0.8)], tilt=10),
    "cup": _kind(_cup(False), _cup(True), mains=[*BRIGHT, (0.1, 0.05, 0.95)]),
    "ball": _kind(_ball_beach(), _ball_foot(), _ball_striped(), mains=BRIGHT, tilt=60),
    "star": _kind(_star(0.25), _star(0.3), mains=[(0.14, 0.85, 1.0), (0.12, 0.75, 0.95)], tilt=25),
    "book": _kind(_book_open(), _book_closed(), mains=BRIGHT, tilt=8),
    "umbrella": _kind(_umbrella(), mains=BRIGHT, tilt=20),
}


# --- colours -------------------------------------------------------------------------------------


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    r, g, b = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return round(255 * r), round(255 * g), round(255 * b)


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    """`a` with `share` (0..1) of `b`."""
    red, green, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


def _about(rng: Random, colour: Colour, by: int = 14) -> Colour:
    """`colour`, lighter or darker and a little off in each channel."""
    shade = rng.randint(-by, by)
    red, green, blue = (min(max(c + shade + rng.randint(-5, 5), 0), 255) for c in colour)
    return red, green, blue


def _palette(rng: Random, kind: Kind) -> dict[str, Colour]:
    hue, saturation, value = rng.choice(kind.mains)
    hue += rng.gauss(0, 0.015)
    main = _hsv(hue, saturation + rng.gauss(0, 0.06), value + rng.gauss(0, 0.06))
    accent = _hsv(hue + rng.uniform(0.25, 0.75), rng.uniform(0.55, 0.9), rng.uniform(0.7, 0.95))
    return {
        "main": main,
        "dark": _mix(main, BLACK, 0.35),
        "light": _mix(main, WHITE, 0.6),
        "accent": accent,
        "black": BLACK,
        "white": _about(rng, WHITE, 6),
        "grey": _about(rng, (150, 152, 158)),
        "pink": (233, 140, 150),
        "orange": _about(rng, (240, 150, 40)),
        "yellow": _about(rng, (250, 215, 95)),
        "glass": _about(rng, (170, 210, 230)),
        "wood": _about(rng, (112, 74, 44)),
        "leaf": _about(rng, (70, 145, 60)),
        "eye": _about(rng, (130, 190, 80)),
    }


# --- canvas --------------------------------------------------------------------------------------


class Canvas:
    """A picture to draw on in units, over a vertical gradient."""

    def __init__(self, size: tuple[int, int], stops: Sequence[tuple[float, Colour]]) -> None:
        """`stops` are (y, colour) of the gradient, y rising; an equal y twice makes an edge."""
        width, height = size
        self.unit = min(size)  # pixels in a unit
        self.shift = ((width - self.unit) / 2, (height - self.unit) / 2)
        self.left, self.right = -self.shift[0] / self.unit, 1 + self.shift[0] / self.unit
        self.top, self.bottom = -self.shift[1] / self.unit, 1 + self.shift[1] / self.unit
        y = (np.arange(height) + 0.5 - self.shift[1]) / self.unit
        at = [stop[0] + 1e-6 * i for i, stop in enumerate(stops)]
        rows = np.stack([np.interp(y, at, [c[i] for _, c in stops]) for i in range(3)], axis=1)
        pixels = np.repeat(rows.astype(np.uint8)[:, None], width, axis=1)
        self.image = Image.fromarray(pixels)
        self.pen: Any = aggdraw.Draw(self.image)

    def _flat(self, points: Points) -> list[float]:
        flat: list[float] = (points * self.unit + self.shift).ravel().tolist()
        return flat

    def fill(self, points: Points, colour: Colour, opacity: int = 255) -> None:
        """Fills an outline; `opacity` is 0..255."""
        self.pen.polygon(self._flat(points), None, aggdraw.Brush(colour, opacity))

    def stroke(self, points: Points, colour: Colour, width: float, opacity: int = 255) -> None:
        """Draws a line, `width` units wide."""
        self.pen.line(self._flat(points), aggdraw.Pen(colour, width * self.unit, opacity))

    def tube(self, points: Points, colour: Colour, width: float) -> None:
        """A stroke with round ends."""
        self.stroke(points, colour, width)
        for x, y in points[[0, -1]].tolist():
            self.fill(_oval(x, y, width / 2, width / 2), colour)

    def outline(self, points: Points, colour: Colour, width: float) -> None:
        """Fills and draws around, `width` units outwards."""
        pen = aggdraw.Pen(colour, 2 * width * self.unit)
        self.pen.polygon(self._flat(points), pen, aggdraw.Brush(colour))

    def ridge(self, rng: Random, y: float, rise: float, colour: Colour, step: float = 0.3) -> None:
        """A rolling edge at about `y`, with everything under it filled."""
        x = self.left - step
        points = []
        while x < self.right + 2 * step:
            points.append((x, y + rng.uniform(-rise, rise)))
            x += step * rng.uniform(0.7, 1.3)
        edge = _curve(*points)
        below = _poly((points[-1][0], self.bottom + 0.1), (points[0][0], self.bottom + 0.1))
        self.fill(np.vstack([edge, below]), colour)

    def across(self, rng: Random) -> float:
        """An x anywhere in the picture."""
        return rng.uniform(self.left, self.right)


# --- the eight settings ----------------------------------------------------------------------------


def _clouds(canvas: Canvas, rng: Random, horizon: float) -> None:
    for _ in range(rng.randint(0, 3)):
        x, y, r = canvas.across(rng), rng.uniform(0, horizon - 0.15), rng.uniform(0.04, 0.08)
        for dx, dy, part in ((-1.2, 0.2, 0.7), (0, 0, 1), (1.2, 0.25, 0.75)):
            canvas.fill(_oval(x + dx * r, y + dy * r, 1.3 * part * r, part * r), WHITE, 200)


def _sun(canvas: Canvas, rng: Random, horizon: float) -> None:
    if rng.random() < 0.5:
        x, y, r = canvas.across(rng), rng.uniform(0.05, horizon - 0.1), rng.uniform(0.04, 0.07)
        canvas.fill(_oval(x, y, 1.5 * r, 1.5 * r), (255, 240, 190), 90)
        canvas.fill(_oval(x, y, r, r), (255, 236, 150))


def _specks(canvas: Canvas, rng: Random, top: float, colour: Colour, number: int) -> None:
    """Pebbles, crumbs, ripples: small flat ovals from `top` down."""
    for _ in range(number):
        x, y = canvas.across(rng), rng.uniform(top, 1)
        r = rng.uniform(0.004, 0.012) * (0.5 + y)
        canvas.fill(_oval(x, y, 1.6 * r, 0.8 * r)[::3], _about(rng, colour, 20))


def _snow(size: tuple[int, int], rng: Random) -> Canvas:
    horizon = rng.uniform(0.36, 0.46)
    sky = _about(rng, rng.choice([(150, 180, 210), (185, 195, 208), (120, 160, 205)]))
    ground = _about(rng, (240, 245, 251), 6)
    canvas = Canvas(size, [(0, sky), (horizon, _mix(sky, WHITE, 0.6)), (1, WHITE)])
    for _ in range(rng.randint(1, 3)):
        x, peak, w = canvas.across(rng), rng.uniform(0.1, 0.28), rng.uniform(0.25, 0.45)
        rock = _about(rng, (120, 140, 170))
        canvas.fill(_poly((x - w, horizon + 0.05), (x, peak), (x + w, horizon + 0.05)), rock)
        f = 0.4
        y = peak + f * (horizon + 0.05 - peak)
        cap = _poly((x - f * w, y), (x, peak), (x + f * w, y), (x + 0.1 * w, y - 0.03), (x, y + 0.02))
        canvas.fill(cap, WHITE)
    canvas.ridge(rng, horizon, 0.02, _mix(ground, (165, 190, 225), 0.35))
    canvas.ridge(rng, horizon + 0.15, 0.03, _mix(ground, (165, 190, 225), 0.15))
    canvas.ridge(rng, horizon + 0.35, 0.03, ground)
    for _ in range(rng.randint(0, 40)):
        r = rng.uniform(0.004, 0.01)
        canvas.fill(_oval(canvas.across(rng), rng.uniform(canvas.top, 1), r, r)[::3], WHITE, 220)
    return canvas


def _table(size: tuple[int, int], rng: Random) -> Canvas:
    wall = _hsv(rng.random(), rng.uniform(0.08, 0.35), rng.uniform(0.6, 0.9))
    floor = _about(rng, (120, 105, 95))
    canvas = Canvas(size, [(0, wall), (0.62, _mix(wall, BLACK, 0.12)), (0.62, floor), (1, floor)])
    clutter = rng.random()
    if clutter < 0.4:
        x = rng.uniform(-0.1, 0.7)
        canvas.fill(_box(x, 0.02, x + 0.36, 0.34), WHITE)
        canvas.fill(_box(x + 0.02, 0.04, x + 0.34, 0.32), _about(rng, (165, 205, 235)))
        canvas.stroke(_poly((x + 0.18, 0.03), (x + 0.18, 0.33)), WHITE, 0.02)
        canvas.stroke(_poly((x, 0.18), (x + 0.36, 0.18)), WHITE, 0.02)
    elif clutter < 0.8:
        stripe, gap = _mix(wall, rng.choice([BLACK, WHITE]), 0.15), rng.uniform(0.08, 0.2)
        x = canvas.left
        while x < canvas.right:
            canvas.fill(_box(x, canvas.top, x + gap / 2, 0.6), stripe)
            x += gap
    back, front, slant = rng.uniform(0.4, 0.48), rng.uniform(0.92, 0.94), rng.uniform(0.06, 0.14)
    wood = _about(rng, rng.choice([(176, 122, 72), (140, 88, 50), (200, 155, 105)]))
    a, b = -0.04, 1.04
    for x in (a + 0.03, b - 0.11):
        canvas.fill(_box(x, front, x + 0.08, canvas.bottom + 0.05), _mix(wood, BLACK, 0.45))
    canvas.fill(_poly((a + slant, back), (b - slant, back), (b, front), (a, front)), wood)
    canvas.fill(_box(a, front, b, front + 0.045), _mix(wood, BLACK, 0.3))
    for i in range(1, 5):
        s = i / 5
        y = back + (front - back) * s**1.3
        inset = slant * (1 - s**1.3)
        canvas.stroke(_poly((a + inset, y), (b - inset, y)), _mix(wood, BLACK, 0.18), 0.006)
    return canvas


def _beach(size: tuple[int, int], rng: Random) -> Canvas:
    horizon = rng.uniform(0.26, 0.34)
    shore = horizon + rng.uniform(0.1, 0.15)
    sky, sea = _about(rng, (125, 190, 235)), _about(rng, (45, 140, 185))
    sand = _about(rng, (236, 212, 160))
    canvas = Canvas(
        size,
        [(0, sky), (horizon, _mix(sky, WHITE, 0.6)), (horizon, sea), (shore, (110, 200, 210)),
         (1, (110, 200, 210))],
    )  # fmt: skip
    _sun(canvas, rng, horizon)
    _clouds(canvas, rng, horizon)
    state = rng.getstate()
    canvas.ridge(rng, shore - 0.02, 0.012, WHITE, 0.18)
    rng.setstate(state)
    canvas.ridge(rng, shore + 0.005, 0.012, _mix(sand, (150, 120, 80), 0.4), 0.18)
    rng.setstate(state)
    canvas.ridge(rng, shore + 0.04, 0.012, sand, 0.18)
    _specks(canvas, rng, shore + 0.1, (215, 180, 140), rng.randint(5, 25))
    return canvas


def _forest(size: tuple[int, int], rng: Random) -> Canvas:
    horizon = rng.uniform(0.44, 0.52)
    deep = _about(rng, (34, 62, 42), 10)
    ground = _about(rng, rng.choice([(84, 82, 44), (66, 88, 46), (98, 76, 48)]), 10)
    canvas = Canvas(size, [(0, deep), (horizon, _mix(deep, (130, 160, 110), 0.5)),
                           (horizon, ground), (1, _mix(ground, BLACK, 0.2))])  # fmt: skip
    for layer in range(2):
        x = canvas.left - rng.uniform(0, 0.1)
        while x < canvas.right:
            w = rng.uniform(0.03, 0.06) * (1 + 0.5 * layer)
            bark = _mix(_about(rng, (88, 66, 48)), deep, 0.55 - 0.35 * layer)
            foot = horizon + rng.uniform(0, 0.03) + 0.03 * layer
            canvas.fill(_poly((x, canvas.top), (x + w, canvas.top), (x + 1.15 * w, foot),
                              (x - 0.15 * w, foot)), bark)  # fmt: skip
            x += w + rng.uniform(0.06, 0.2) * (1 + 0.4 * layer)
    x = canvas.left
    while x < canvas.right + 0.1:
        r = rng.uniform(0.08, 0.14)
        canvas.fill(_oval(x, rng.uniform(-0.05, 0.06), r, r), _about(rng, (30, 74, 38), 12))
        x += 0.9 * r
    for _ in range(rng.randint(6, 16)):
        x, y = canvas.across(rng), rng.uniform(horizon, 1)
        green = _about(rng, (62, 108, 52), 16)
        for lean in (-0.03, 0, 0.03):
            canvas.stroke(_poly((x, y), (x + lean, y - 0.035)), green, 0.008)
    return canvas


def _sea(size: tuple[int, int], rng: Random) -> Canvas:
    horizon = rng.uniform(0.24, 0.36)
    sky = _about(rng, rng.choice([(140, 200, 240), (170, 195, 215), (240, 190, 150)]))
    sea = _about(rng, rng.choice([(24, 104, 160), (30, 125, 165), (28, 85, 140)]))
    canvas = Canvas(size, [(0, sky), (horizon, _mix(sky, WHITE, 0.5)), (horizon, _mix(sea, sky, 0.4)),
                           (1, _mix(sea, BLACK, 0.2))])  # fmt: skip
    _sun(canvas, rng, horizon)
    _clouds(canvas, rng, horizon)
    y = horizon + 0.04
    while y < 1:
        x = canvas.left - rng.uniform(0, 0.2)
        size_here = 0.04 + 0.12 * (y - horizon)
        while x < canvas.right:
            crest = _arc(x, y, size_here, 0.25 * size_here, 200, 340)
            canvas.stroke(crest, _mix(sea, WHITE, 0.45), 0.006 + 0.006 * y)
            x += size_here * rng.uniform(2.2, 5)
        y += 0.05 + 0.06 * (y - horizon)
    return canvas


def _desert(size: tuple[int, int], rng: Random) -> Canvas:
    horizon = rng.uniform(0.36, 0.44)
    sky = _about(rng, rng.choice([(250, 200, 130), (120, 185, 225), (245, 170, 110)]))
    sand = _about(rng, rng.choice([(222, 142, 66), (232, 160, 80), (208, 120, 62)]))
    canvas = Canvas(size, [(0, sky), (horizon, _mix(sky, (255, 240, 210), 0.6)), (1, sand)])
    _sun(canvas, rng, horizon)
    canvas.ridge(rng, horizon - 0.04, 0.05, _mix(sand, (130, 60, 40), 0.4), 0.35)
    canvas.ridge(rng, horizon + 0.04, 0.04, _mix(sand, (140, 70, 30), 0.2), 0.4)
    for _ in range(rng.randint(0, 2)):
        x, y, h = canvas.across(rng), horizon + rng.uniform(0.03, 0.07), rng.uniform(0.08, 0.13)
        green = _about(rng, (70, 105, 60))
        canvas.stroke(_poly((x, y), (x, y - h)), green, 0.024)
        canvas.stroke(_poly((x, y - 0.4 * h), (x + 0.035, y - 0.4 * h), (x + 0.035, y - 0.75 * h)),
                      green, 0.016)  # fmt: skip
    for depth in (0.16, 0.32, 0.48):
        canvas.ridge(rng, horizon + depth, 0.05, _mix(sand, (255, 225, 150), 0.5 * depth), 0.5)
    _specks(canvas, rng, horizon + 0.2, (150, 90, 55), rng.randint(0, 10))
    return canvas


def _grass(size: tuple[int, int], rng: Random) -> Canvas:
    horizon = rng.uniform(0.32, 0.42)
    sky, green = _about(rng, (130, 195, 240)), _about(rng, (104, 176, 66))
    canvas = Canvas(size, [(0, sky), (horizon, _mix(sky, WHITE, 0.6)), (1, green)])
    _sun(canvas, rng, horizon)
    _clouds(canvas, rng, horizon)
    canvas.ridge(rng, horizon, 0.04, _mix(green, (60, 120, 90), 0.5), 0.4)
    canvas.ridge(rng, horizon + 0.07, 0.02, green, 0.4)
    if rng.random() < 0.4:
        y = horizon + 0.05
        wood = _about(rng, (200, 190, 175))
        x = canvas.left
        while x < canvas.right:
            canvas.fill(_box(x, y - 0.06, x + 0.02, y + 0.04), wood)
            x += 0.1
        for dy in (-0.035, 0.005):
            canvas.stroke(_poly((canvas.left, y + dy), (canvas.right, y + dy)), wood, 0.012)
    for _ in range(rng.randint(15, 35)):
        x, y = canvas.across(rng), rng.uniform(horizon + 0.15, 1)
        blade = _mix(green, rng.choice([(40, 90, 30), (190, 230, 120)]), rng.uniform(0.3, 0.7))
        tuft = _poly((x - 0.018, y - 0.035), (x - 0.006, y), (x, y - 0.045), (x + 0.006, y),
                     (x + 0.018, y - 0.03))  # fmt: skip
        canvas.stroke(tuft, blade, 0.007)
    return canvas


def _london_night(size: tuple[int, int], rng: Random) -> Canvas:
    street = rng.uniform(0.46, 0.5)
    sky = _about(rng, rng.choice([(14, 20, 52), (24, 22, 60), (10, 26, 48)]), 6)
    paving = _about(rng, rng.choice([(52, 54, 74), (40, 50, 72), (62, 56, 70)]), 6)
    canvas = Canvas(size, [(0, sky), (street, _mix(sky, (120, 90, 110), 0.55)), (street, paving),
                           (1, _mix(paving, BLACK, 0.45))])  # fmt: skip
    lit: Colour = (255, 214, 110)
    moon, r = (canvas.across(rng), rng.uniform(0.05, 0.12)), rng.uniform(0.03, 0.045)
    canvas.fill(_oval(*moon, 1.7 * r, 1.7 * r), (250, 245, 215), 50)
    canvas.fill(_oval(*moon, r, r), (250, 245, 215))
    x = canvas.left - rng.uniform(0, 0.1)
    while x < canvas.right:
        w, h = rng.uniform(0.07, 0.16), rng.uniform(0.1, 0.26)
        canvas.fill(_box(x, street - h, x + w, street), _about(rng, (30, 32, 58), 10))
        for row in range(int(h / 0.045)):
            for column in range(int(w / 0.035)):
                if rng.random() < 0.4:
                    wx, wy = x + 0.012 + 0.035 * column, street - h + 0.015 + 0.045 * row
                    canvas.fill(_box(wx, wy, wx + 0.016, wy + 0.022), _about(rng, lit, 25))
        x += w + rng.uniform(0, 0.02)
    spots = [0.18, 0.5, 0.82]
    rng.shuffle(spots)
    if rng.random() < 0.7:
        _wheel_of_london(canvas, rng, spots[1], street)
    else:
        _shard(canvas, rng, spots[1], street)
    _big_ben(canvas, rng, spots[0] + rng.uniform(-0.06, 0.06), street)
    canvas.fill(_box(canvas.left, street - 0.012, canvas.right, street), _mix(paving, BLACK, 0.5))
    for _ in range(rng.randint(6, 12)):
        x, y = canvas.across(rng), rng.uniform(street + 0.02, 0.75)
        canvas.fill(_oval(x, y, 0.008, rng.uniform(0.02, 0.06)), _about(rng, lit, 25), 70)
    return canvas


def _big_ben(canvas: Canvas, rng: Random, x: float, foot: float) -> None:
    stone = _about(rng, (176, 136, 76))
    w, top = 0.05, foot - rng.uniform(0.27, 0.31)
    canvas.fill(_box(x - w, top, x + w, foot), stone)
    for dx in (-0.6, 0, 0.6):
        canvas.stroke(_poly((x + dx * w, top + 0.12), (x + dx * w, foot)), _mix(stone, BLACK, 0.4),
                      0.008)  # fmt: skip
    canvas.fill(_box(x - 1.2 * w, top - 0.01, x + 1.2 * w, top + 0.1), _mix(stone, WHITE, 0.15))
    canvas.fill(_poly((x - 1.2 * w, top - 0.01), (x, top - 0.13), (x + 1.2 * w, top - 0.01)),
                _mix(stone, BLACK, 0.35))  # fmt: skip
    canvas.fill(_oval(x, top + 0.045, 0.04, 0.04), (255, 244, 200))
    canvas.stroke(_poly((x, top + 0.015), (x, top + 0.045), (x + 0.02, top + 0.055)), BLACK, 0.007)


def _wheel_of_london(canvas: Canvas, rng: Random, x: float, foot: float) -> None:
    r = rng.uniform(0.12, 0.15)
    y = foot - r - 0.02
    light = _about(rng, rng.choice([(120, 170, 255), (230, 120, 190), (190, 210, 255)]))
    for angle in range(0, 180, 30):
        c, s = r * math.cos(math.radians(angle)), r * math.sin(math.radians(angle))
        canvas.stroke(_poly((x - c, y - s), (x + c, y + s)), light, 0.004)
    canvas.stroke(_arc(x, y, r, r, 0, 360), light, 0.014)
    canvas.stroke(_poly((x - 0.07, foot), (x, y), (x + 0.07, foot)), light, 0.01)


def _shard(canvas: Canvas, rng: Random, x: float, foot: float) -> None:
    glass = _about(rng, (110, 150, 190))
    canvas.fill(_poly((x - 0.08, foot), (x, foot - 0.38), (x + 0.08, foot)), glass)
    for step in range(1, 8):
        y, half = foot - 0.045 * step, 0.07 * (1 - step / 8.4)
        canvas.stroke(_poly((x - half, y), (x + half, y)), (250, 225, 150), 0.006)


PLACES: dict[str, Callable[[tuple[int, int], Random], Canvas]] = {
    "snow": _snow,
    "table": _table,
    "beach": _beach,
    "forest": _forest,
    "sea": _sea,
    "desert": _desert,
    "grass": _grass,
    "london_night": _london_night,
}


# --- putting it together ---------------------------------------------------------------------------


class Cell(NamedTuple):
    """Room for one thing, in units: middle of its lower edge, width and height."""

    x: float
    base: float
    width: float
    height: float


FRONT = 0.89  # lowest base: what stands lower than this would slide off the table's edge


def layout(scene: Scene, seed: int) -> list[Cell]:
    """The cells that the things of `scene` stand in, farthest first; disjoint, in the unit square."""
    rng = Random(f"layout {scene.name} {seed}")
    if scene.count == 1:
        side = rng.uniform(0.42, 0.76)
        x = 0.5 + rng.uniform(-1, 1) * (0.92 - side) / 2
        cells = [Cell(x, rng.uniform(max(0.62, side + 0.05), FRONT), side, side)]
    elif scene.count == 2:
        cells = [
            Cell(x + rng.uniform(-0.02, 0.02), rng.uniform(0.6, FRONT), rng.uniform(0.36, 0.43),
                 rng.uniform(0.38, 0.52))
            for x in (0.27, 0.73)
        ]  # fmt: skip
    elif scene.count == 3 and rng.random() < 0.4:
        cells = [Cell(x, rng.uniform(0.58, FRONT), 0.29, rng.uniform(0.32, 0.45)) for x in (0.19, 0.5, 0.81)]
    elif scene.count == 3:
        far, near = rng.uniform(0.46, 0.49), rng.uniform(0.86, FRONT)
        pair, one = (near, far) if rng.random() < 0.6 else (far, near)
        height = 0.36
        cells = [
            Cell(rng.uniform(0.25, 0.28), pair, 0.42, height),
            Cell(rng.uniform(0.72, 0.75), pair, 0.42, height),
            Cell(rng.uniform(0.3, 0.7), one, 0.42, height),
        ]
    else:
        cells = []
    return sorted(cells, key=lambda cell: cell.base)


@cache
def _stacked(thing: str, pose: int) -> tuple[Points, npt.NDArray[np.float64], list[int]]:
    """A pose's points in one array, half the stroke width at each, and where its parts begin."""
    parts = KINDS[thing].poses[pose]
    halves = np.concatenate([np.full(len(part.points), part.width / 2) for part in parts])
    starts = np.cumsum([0, *(len(part.points) for part in parts)]).tolist()
    return np.concatenate([part.points for part in parts]), halves, starts


def _put(
    canvas: Canvas, rng: Random, thing: str, cell: Cell, style: str, palette: dict[str, Colour],
    night: bool,
) -> None:  # fmt: skip
    """Draws a thing as large as its cell allows, or a little smaller, standing on the cell's base."""
    kind = KINDS[thing]
    pose = rng.randrange(len(kind.poses))
    points, halves, starts = _stacked(thing, pose)
    angle = math.radians(rng.uniform(-kind.tilt, kind.tilt))
    c, s = math.cos(angle), math.sin(angle)
    points = (points * (rng.choice((-1, 1)), 1)) @ np.array([[c, s], [-s, c]])
    low, high = (points - halves[:, None]).min(axis=0), (points + halves[:, None]).max(axis=0)
    wide, tall = high - low
    scale = min(cell.width / wide, cell.height / tall) * rng.uniform(0.84, 0.97)
    spare = (cell.width - scale * wide) / 2
    centre = cell.x + rng.uniform(-spare, spare)
    points = (points - ((low[0] + high[0]) / 2, high[1])) * scale + (centre, cell.base)

    half = scale * wide / 2
    canvas.fill(_oval(centre, cell.base - 0.005, 0.9 * half, 0.025), BLACK, 110 if night else 70)
    rim = (235, 225, 200) if night else BLACK
    edge = _mix(palette["main"], rim, 0.9 if style == "outlined" else 0.6)
    width = 0.012 if style == "outlined" else 0.006
    parts = [(part, points[a:b]) for part, (a, b) in zip(kind.poses[pose], pairwise(starts), strict=True)]
    for part, here in parts:
        if part.rim and part.width:
            canvas.tube(here, edge, part.width * scale + 2 * width)
        elif part.rim:
            canvas.outline(here, edge, width)
    for part, here in parts:
        colour = palette[part.colour]
        if part.width and part.rim:
            canvas.tube(here, colour, part.width * scale)
        elif part.width:
            canvas.stroke(here, colour, part.width * scale)
        else:
            canvas.fill(here, colour)


def _wash(canvas: Canvas, rng: Random, cell: Cell) -> None:
    """Water in front of a thing in the sea, so that it swims rather than stands."""
    left, right = cell.x - cell.width / 2 - 0.02, cell.x + cell.width / 2 + 0.02
    y = cell.base - rng.uniform(0.03, 0.05)
    crest = _curve(*((left + (right - left) * i / 6, y + (0.012 if i % 2 else -0.008))
                     for i in range(7)))  # fmt: skip
    under = _arc(cell.x, y, (right - left) / 2, 0.07, 0, 180)
    canvas.fill(np.vstack([crest, under]), (40, 120, 170), 235)
    canvas.stroke(crest, WHITE, 0.01, 220)


def draw(scene: Scene, seed: int, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Draws a scene.

    Args:
        scene: What to draw.
        seed: Picks one of the scene's pictures; equal scene, seed and size give equal pixels.
        size: Width and height in pixels.

    Returns:
        An RGB picture of that size.
    """
    rng = Random(f"{scene.name} {seed}")
    style = rng.choice(STYLES)
    canvas = PLACES[scene.setting](size, rng)
    if scene.thing is not None:
        palette = _palette(rng, KINDS[scene.thing])
        for cell in layout(scene, seed):
            if rng.random() < 0.6:
                palette = _palette(rng, KINDS[scene.thing])
            night = scene.setting == "london_night"
            _put(canvas, rng, scene.thing, cell, style, palette, night)
            if scene.setting == "sea":
                _wash(canvas, rng, cell)
    canvas.pen.flush()
    image = canvas.image
    if style == "soft":
        image = image.filter(ImageFilter.GaussianBlur(0.0035 * canvas.unit))
    return _lit(image, rng, style)


def _lit(image: Image.Image, rng: Random, style: str) -> Image.Image:
    """The light of the day: brightness, a warm or cold tint, one side lighter; grain if textured."""
    width, height = image.size
    pixels = np.asarray(image, dtype=np.float32)
    tint = np.float32(rng.uniform(0.82, 1.08)) * np.array(
        rng.choice([(1, 1, 1), (1, 1, 1), (1.05, 0.97, 0.86), (0.9, 0.96, 1.06)]), np.float32
    )
    slope = rng.uniform(-0.1, 0.1)
    ramp = np.linspace(1 - slope, 1 + slope, width, dtype=np.float32)
    pixels = pixels * (ramp[:, None] * tint)
    if style == "textured":
        noise = np.random.default_rng(rng.getrandbits(64))
        grain = noise.standard_normal((height, width, 1), np.float32)
        pixels = pixels + np.float32(rng.uniform(4, 9)) * grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_examples(folder: Path = PICTURES) -> None:
    """Writes the pictures of the running example, 640x480 JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    for scene, (name, seed) in zip(RUNNING_EXAMPLE, EXAMPLES, strict=True):
        draw(scene, seed).save(folder / name, quality=92)


if __name__ == "__main__":
    draw_examples()
