"""Four costly requests at once among eight innocent callers, on a real server."""

from __future__ import annotations

import pytest

from reliability.attacks import ATTACKS
from reliability.cost import run_cost
from tests.http.api import AnyServer

# Of each kind of work: parsing, a body in parts, tokenising, many items, many pixels, headers.
NAMES = (
    "quotes never closed",
    "lists 30 deep",
    "numbers",
    "labels in a part, lists",
    "1,000 labels in a template",
    "25 texts of emoji",
    "the largest comparison",
    "pictures of grey and alpha",
    "JPEG, tiny Exif segments",
    "PNG, empty pixel chunks",
)


def test_four_attacks_at_once_among_eight_good_callers(
    server: AnyServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """ATTACKS A1, A3 to A8: no worker killed, no good caller told 5xx, memory back within the promise."""
    kept = run_cost(server, [attack for attack in ATTACKS if attack.name in NAMES], 0)
    assert kept, capsys.readouterr().out
