"""What is measured of a server: which workloads, by how many clients, in every round or once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Closed:
    """A closed loop."""

    workload: str
    clients: int

    @property
    def name(self) -> str:
        """Its key in the results."""
        return f"{self.workload}_c{self.clients}"


@dataclass(frozen=True)
class Open:
    """An open loop at a share of what the closed loop with `CAPACITY_CLIENTS` reached in the same round."""

    workload: str
    percent: int

    @property
    def name(self) -> str:
        """Its key in the results."""
        return f"{self.workload}_open{self.percent}"


Measurement = Closed | Open

CAPACITY_CLIENTS = 32


def _closed(workload: str, *clients: int) -> tuple[Closed, ...]:
    return tuple(Closed(workload, count) for count in clients)


# Our own endpoint and OpenAI's door one after the other: they are compared to a few percent.
PLAN: tuple[Measurement, ...] = (
    *_closed("image", 1, 8, 32),
    *_closed("door_image", 32, 1),
    *_closed("text", 1, 8, 32),
    *_closed("door_text", 32, 1),
    *_closed("text_batch32", 8),
    *_closed("similarity_1000_known", 1),
)
# No ratio is of these: they are measured in the first round only.
ONCE: tuple[Measurement, ...] = (
    *(Open("image", percent) for percent in (50, 80, 110)),
    *(Open("text", percent) for percent in (50, 80, 110)),
    *_closed("image_raw", 32),
    *_closed("image_2mp", 8),
    *_closed("image_12mp", 8),
    *_closed("text_floats", 32),
    *_closed("similarity_fresh", 1),
    *_closed("similarity_repeated", 1),
)
SMALL_PLAN: tuple[Measurement, ...] = (
    *_closed("image", 1, 32),
    *_closed("door_image", 32),
    *_closed("text", 1, 32),
    *_closed("door_text", 32),
    *_closed("similarity_1000_known", 1),
)
# The same core behind another server: only what the server changes.
RAY_PLAN = (*_closed("image", 1, 8, 32), *_closed("text", 1, 8, 32), *_closed("text_batch32", 8))
INT8_PLAN = (*_closed("image", 1, 32), *_closed("text", 1, 32))
LAYOUT_PLAN = (*_closed("image", 1, 8, 32), *_closed("text", 1, 8, 32))
SMALL_LAYOUT_PLAN = (*_closed("image", 8), *_closed("text", 8))
