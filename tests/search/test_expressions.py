"""What people write, and what it means."""

from __future__ import annotations

import re

import numpy as np
import pytest

from search.errors import SearchError
from search.expressions import Term, combined, parse


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("two dogs", [(1, "two dogs", False)]),
        (
            "beach + ./dog.jpg − people",
            [(1, "beach", False), (1, "./dog.jpg", True), (-1, "people", False)],
        ),
        ("- people", [(-1, "people", False)]),
        ("+ beach", [(1, "beach", False)]),
        ("2*beach - 0,5 × people", [(2, "beach", False), (-0.5, "people", False)]),
        ("浜辺 ＋ 犬 － 人", [(1, "浜辺", False), (1, "犬", False), (-1, "人", False)]),
        ("شاطئ + كلب - ناس", [(1, "شاطئ", False), (1, "كلب", False), (-1, "ناس", False)]),
        # Signs within words, and dashes, are part of a text.
        ("x-ray of a t-shirt", [(1, "x-ray of a t-shirt", False)]),
        ("London – by night", [(1, "London – by night", False)]),
        ("-5 °C, C++", [(1, "-5 °C, C++", False)]),
        ('"rock - paper" - scissors', [(1, "rock - paper", False), (-1, "scissors", False)]),
        ('a 12" disk - dust', [(1, 'a 12" disk', False), (-1, "dust", False)]),
        ('2*"/etc"', [(2, "/etc", False)]),
        ("~/a dog.jpg - ../b.png", [(1, "~/a dog.jpg", True), (-1, "../b.png", True)]),
        ("3 dogs * 2", [(1, "3 dogs * 2", False)]),
    ],
)
def test_terms(query: str, terms: list[tuple[float, str, bool]]) -> None:
    assert parse(query) == [Term(*term) for term in terms]


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("beach +", "nothing follows the +"),
        ("beach + - people", "nothing follows the +"),
        ("-", "nothing follows the -"),
        ("", "nothing follows"),
        ("0*dog", "'0': a weight is more than 0"),
        ("101*dog", "at most 100"),
        ("2*", "of something"),
    ],
)
def test_what_means_nothing(query: str, complaint: str) -> None:
    with pytest.raises(SearchError, match=re.escape(complaint)):
        parse(query)


def test_the_sum() -> None:
    one, other = np.float32([1, 0]), np.float32([0, 1])
    np.testing.assert_allclose(combined([3, -4], [one, other]), [0.6, -0.8], atol=1e-6)
    with pytest.raises(SearchError, match="leave one of them out"):
        combined([1, -1], [one, one])
