from __future__ import annotations

from typing import Any

import pytest

from clipserve.errors import SettingsError
from clipserve.images import ImageLimits
from clipserve.settings import Settings
from clipserve.wire.rows import RequestLimits


def test_settings() -> None:
    assert Settings.from_mapping({}) == Settings()
    section = {
        "threads": 2, "max_batch": 8, "max_seconds": 9, "text_cache_bytes": 5, "max_bytes": 7,
        "max_memory": 8, "max_scans": 4, "max_structures": 6, "color": "ignore", "formats": ["PNG"],
        "max_items": 1, "max_texts": 2, "max_characters": 3, "draft_factor": 0, "max_aspect_ratio": 9,
        "max_request_seconds": 6,
    }  # fmt: skip
    assert Settings.from_mapping(section) == Settings(
        threads=2,
        max_batch=8,
        max_seconds=9,
        max_request_seconds=6,
        text_cache_bytes=5,
        draft_factor=0,
        color="ignore",
        images=ImageLimits(
            max_bytes=7, max_memory=8, max_aspect_ratio=9, max_scans=4, max_structures=6, formats=("PNG",)
        ),
        requests=RequestLimits(max_items=1, max_texts=2, max_characters=3),
    )


@pytest.mark.parametrize("key", ["thread", "", "images", "requests", "maxBatch"])
def test_unknown_settings(key: str) -> None:
    with pytest.raises(SettingsError, match=f"{key!r} is unknown; allowed are threads, "):
        Settings.from_mapping({key: 1})


@pytest.mark.parametrize("key", ["max_batch", "text_cache_bytes", "max_bytes", "max_items", "max_texts"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "8", None, True, [1]], ids=str)
def test_settings_that_are_no_number(key: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"{key}: .*whole number >= 1"):
        Settings.from_mapping({key: value})


@pytest.mark.parametrize("key", ["draft_factor", "threads"])
@pytest.mark.parametrize("value", [-1, 1.5, "all", None, True], ids=str)
def test_settings_that_may_be_0(key: str, value: Any) -> None:
    assert getattr(Settings.from_mapping({key: 0}), key) == 0
    with pytest.raises(SettingsError, match=f"{key}: .*whole number >= 0"):
        Settings.from_mapping({key: value})


@pytest.mark.parametrize("value", ["sRGB", "", None, 1, ["srgb"]], ids=str)
def test_colors_that_are_no_choice(value: Any) -> None:
    with pytest.raises(SettingsError, match=r"color: .*one of srgb, ignore"):
        Settings.from_mapping({"color": value})


@pytest.mark.parametrize("value", ["JPEG", [], None, ["JPG"], [5], 5], ids=str)
def test_formats_that_are_no_list_of_formats(value: Any) -> None:
    with pytest.raises(SettingsError, match="formats"):
        Settings.from_mapping({"formats": value})
