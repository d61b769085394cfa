"""What an endpoint is told: the `handler` section of its YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from clipserve.colors import COLORS, Color
from clipserve.errors import SettingsError
from clipserve.image_formats import FORMATS
from clipserve.images import ImageLimits
from clipserve.wire.rows import RequestLimits

LEAST = {"draft_factor": 0, "threads": 0}


@dataclass(frozen=True)
class Settings:
    """The `handler` section of an archive's YAML.

    Attributes:
        threads: intra-op threads of one worker, and pictures that it decodes at once; 0 is one for each core
            that it may use. Workers x threads should not exceed the cores.
        max_batch: the most items that one forward pass takes.
        max_seconds: of a batch. Then requests that have not begun are refused as `overloaded`. Well below the
            server's `responseTimeout`, which would kill the worker and fail the whole batch.
        max_request_seconds: of one request, or of several that share a forward pass. Then what has been
            embedded is answered, and each item that has not is `overloaded`.
        text_cache_bytes: that the similarity endpoint's remembered text embeddings may take.
        draft_factor: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where its shorter side stays at least
            so many times what it is resized to; 0 decodes every picture whole that fits in `max_memory`. What
            6 costs in fidelity, and less would, is in docs/pictures.md.
        color: `srgb` or `ignore`, see `clipserve.images.decode_image`.
        images, requests: limits, see their classes.
    """

    threads: int = 1
    max_batch: int = 32
    max_seconds: int = 25
    max_request_seconds: int = 8
    text_cache_bytes: int = 25_000_000
    draft_factor: int = 6
    color: Color = "srgb"
    images: ImageLimits = field(default_factory=ImageLimits)
    requests: RequestLimits = field(default_factory=RequestLimits)

    def within(self, response_seconds: float) -> tuple[Settings, list[str]]:
        """These settings with limits of time that a server's `responseTimeout` leaves room for.

        A batch may overrun by the picture or the forward pass that is under way, so it gets half of it.

        Returns:
            The settings, and a sentence for each limit that had to be lowered.
        """
        most = max(1, int(response_seconds / 2))
        batch, request = min(self.max_seconds, most), min(self.max_request_seconds, most)
        return replace(self, max_seconds=batch, max_request_seconds=request), [
            f"{name} is lowered from {given} to {most} s: responseTimeout, after which the server would end "
            f"this worker, is {response_seconds:g} s"
            for name, given in (
                ("max_seconds", self.max_seconds),
                ("max_request_seconds", self.max_request_seconds),
            )
            if given > most
        ]

    @classmethod
    def from_mapping(cls, section: Mapping[str, Any]) -> Settings:
        """Reads the section as YAML gives it: flat, integers, `formats` a list, `color` a word.

        Raises:
            SettingsError: an unknown key, or a value that is not allowed there.
        """
        groups: dict[str, dict[str, Any]] = {"": {}, "images": {}, "requests": {}}
        places = {
            **dict.fromkeys((f.name for f in fields(cls) if f.name not in groups), ""),
            **dict.fromkeys(ImageLimits.__dataclass_fields__, "images"),
            **dict.fromkeys(RequestLimits.__dataclass_fields__, "requests"),
        }
        for key, value in section.items():
            if key not in places:
                raise SettingsError(f"handler setting {key!r} is unknown; allowed are {', '.join(places)}")
            if key == "formats":
                value = _formats(value)
            elif key == "color":
                if not isinstance(value, str) or value not in COLORS:
                    raise SettingsError(
                        f"handler setting color: {value!r}, should be one of {', '.join(COLORS)}"
                    )
            elif not isinstance(value, int) or isinstance(value, bool) or value < LEAST.get(key, 1):
                raise SettingsError(
                    f"handler setting {key}: {value!r}, should be a whole number >= {LEAST.get(key, 1)}"
                )
            groups[places[key]][key] = value
        return cls(
            images=ImageLimits(**groups["images"]),
            requests=RequestLimits(**groups["requests"]),
            **groups[""],
        )


def _formats(value: Any) -> tuple[str, ...]:
    """Checks a list of picture formats: a name that is not in the table would refuse every picture."""
    if not isinstance(value, list) or not value or not {*map(str, value)} <= FORMATS.keys():
        raise SettingsError(
            f"handler setting formats: {value!r}, should be a list of {', '.join(FORMATS)}, as [JPEG, PNG]"
        )
    return tuple(value)
