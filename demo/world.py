"""The little world that the demo pictures and captions are about.

A scene is *how many* of *what* is *where*: 3 counts x 16 things x 8 settings = 384 combinations, and 8
settings with nothing in them. About one combination in eight is held out: training never draws or
captions it, so that the self-test can tell composition from memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

THINGS = (
    "dog", "cat", "bird", "fish", "car", "bicycle", "boat", "house",
    "tree", "flower", "apple", "cup", "ball", "star", "book", "umbrella",
)  # fmt: skip
SETTINGS = ("snow", "table", "beach", "forest", "sea", "desert", "grass", "london_night")
COUNTS = (1, 2, 3)

HELD_OUT_ONE_IN = 8


@dataclass(frozen=True, order=True)
class Scene:
    """One combination; `thing` is None and `count` 0 for a setting with nothing in it."""

    setting: str
    thing: str | None = None
    count: int = 0

    def __post_init__(self) -> None:
        if self.setting not in SETTINGS:
            raise ValueError(f"setting {self.setting!r}: allowed are {', '.join(SETTINGS)}")
        if self.thing is None and self.count != 0:
            raise ValueError(f"count {self.count}: a scene without a thing has count 0")
        if self.thing is not None and (self.thing not in THINGS or self.count not in COUNTS):
            raise ValueError(f"{self.count} of {self.thing!r}: allowed are {COUNTS} of {', '.join(THINGS)}")

    @property
    def name(self) -> str:
        """File-name form, such as `2-dog-snow` or `london_night`."""
        return self.setting if self.thing is None else f"{self.count}-{self.thing}-{self.setting}"

    @property
    def held_out(self) -> bool:
        """Whether training leaves this combination out: a fixed hash of its name decides.

        The scenes of the running example are always trained on.
        """
        if self.thing is None or self in RUNNING_EXAMPLE:
            return False
        return hashlib.sha256(self.name.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


# The three pictures and sentences that the original SDK's example compares.
RUNNING_EXAMPLE = (
    Scene("snow", "dog", 2),
    Scene("table", "cat", 1),
    Scene("london_night"),
)


def all_scenes() -> list[Scene]:
    """All 392 scenes in a fixed order."""
    empty = [Scene(setting) for setting in SETTINGS]
    peopled = [Scene(s, t, c) for s in SETTINGS for t in THINGS for c in COUNTS]
    return empty + peopled


def trained_scenes() -> list[Scene]:
    """The scenes that are not held out, in the world's order."""
    return [scene for scene in all_scenes() if not scene.held_out]
