"""What work costs before it is done, and what a deadline still has room for."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator

from clipserve.errors import RequestError


class PassCost:
    """What a forward pass costs by its size: the least time per unit that any pass took so far.

    The least, since whatever else the machine does only adds to it, most of all while workers start beside
    each other. A unit is a picture, or a padded token.
    """

    def __init__(self) -> None:
        self._seconds_per_unit = math.inf

    @contextlib.contextmanager
    def measure(self, units: int) -> Iterator[None]:
        """Learns from the pass of so many units that runs in a `with` block, unless it raises."""
        started = time.perf_counter()
        yield
        self._seconds_per_unit = min(self._seconds_per_unit, (time.perf_counter() - started) / units)

    def seconds(self, units: int) -> float:
        """What a pass of so many units takes; measured once before."""
        return units * self._seconds_per_unit


class Budget:
    """The time until a deadline, less what is set aside for work that has been prepared.

    Args:
        deadline: as `time.monotonic()`.
    """

    def __init__(self, deadline: float):
        self._deadline = deadline
        self._set_aside = 0.0
        self._begun = False
        # Pictures are decoded, and time set aside for them, in another thread than they are embedded in.
        self._lock = threading.Lock()

    @classmethod
    def of(cls, seconds: float) -> Budget:
        """So many seconds from now on."""
        return cls(time.monotonic() + seconds)

    def within(self, seconds: float) -> Budget:
        """A budget of its own for a part of the work: as long as this one lasts, at most so many seconds."""
        return Budget.of(min(seconds, self.left()))

    def left(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self._deadline - time.monotonic()

    def set_aside(self, seconds: float) -> bool:
        """Sets time aside for one more item; False where there is not enough of it left.

        The first item needs no more than that the deadline has not passed: whoever asks again and again for
        what was left out gets on, however slow the machine.
        """
        with self._lock:
            left = self.left()
            if left <= 0 or (self._begun and self._set_aside + seconds > left):
                return False
            self._begun = True
            self._set_aside += seconds
            return True

    def give_back(self, seconds: float) -> None:
        """Takes back what was set aside for an item, which is done or has failed."""
        with self._lock:
            self._set_aside -= seconds


def overloaded() -> RequestError:
    """What an item is told, or a whole request, for which there was no time."""
    return RequestError(
        "overloaded",
        "the time of this request, or of those that it shares a batch with, was up; ask again",
        503,
    )


def out_of_memory() -> RequestError:
    """What an item is told that an encoder finds no memory for, not even alone: another time there may be."""
    return RequestError(
        overloaded().code,
        "the server has no memory for this item beside what else it does; ask again",
        503,
    )
