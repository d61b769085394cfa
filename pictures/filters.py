"""Which rows are looked at: by path, camera, place and date, as SQL conditions."""

from __future__ import annotations

import calendar
import datetime
import re
from dataclasses import dataclass

from pictures.errors import PicturesError
from pictures.paths import path_condition, sql_text
from pictures.storage import all_of

_DATE = re.compile(r"([0-9]{4})(?:-([0-9]{1,2})(?:-([0-9]{1,2}))?)?")


@dataclass(frozen=True)
class Filter:
    """What a row must fulfil; what is empty is not asked for.

    Attributes:
        path: part of the path, see `pictures.paths.path_condition`.
        camera: part of maker and model, in any case.
        place: part of the town's or the country's name, in any case.
        since: a day, month or year: `2024-05-31`, `2024-05`, `2024`.
        until: the same; all of it is taken.
    """

    path: str = ""
    camera: str = ""
    place: str = ""
    since: str = ""
    until: str = ""

    def condition(self) -> str | None:
        """The SQL condition, None for every row.

        The date is that of taking; of a picture that does not say, that of the file's last change.

        Raises:
            PicturesError: what should be a date is none.
        """
        return (
            all_of(
                path_condition(self.path) if self.path else None,
                _contains("camera", self.camera) if self.camera else None,
                _contains("place", self.place) if self.place else None,
                _dated(">=", _days(self.since)[0]) if self.since else None,
                _dated("<", _days(self.until)[1]) if self.until else None,
            )
            or None
        )


EVERYTHING = Filter()


def _contains(column: str, text: str) -> str:
    return f"contains(lower({column}), {sql_text(text.lower())})"


def _dated(operator: str, day: datetime.datetime) -> str:
    changed = int(day.timestamp()) * 10**9
    return (
        f"taken {operator} timestamp '{day:%Y-%m-%d %H:%M:%S}' OR "
        f"(taken IS NULL AND mtime_ns {operator} {changed})"
    )


def _days(text: str) -> tuple[datetime.datetime, datetime.datetime]:
    """When a day, month or year begins, and when the next one does; by this machine's clock."""
    try:
        match = _DATE.fullmatch(text.strip())
        year, month, day = (
            (int(part) if part else None for part in match.groups()) if match else (0, None, None)
        )
        first = datetime.datetime(year or 0, month or 1, day or 1)
        days = 1 if day else calendar.monthrange(first.year, first.month)[1] if month else 0
        last = first + datetime.timedelta(days) if days else first.replace(year=first.year + 1)
    except ValueError as error:
        raise PicturesError(f"{text!r} is no date; write 2024-05-31, 2024-05 or 2024") from error
    return first, last
