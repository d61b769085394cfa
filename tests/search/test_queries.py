from __future__ import annotations

import unicodedata

import pytest

from demo.captions import load_vocabularies
from demo.world import all_scenes
from search.queries import normalized


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (unicodedata.normalize("NFD", "két kutya a hóban"), "két kutya a hóban"),
        (unicodedata.normalize("NFD", "눈 속의 개 두 마리"), "눈 속의 개 두 마리"),
        ("ｔｗｏ　ｄｏｇｓ", "two dogs"),
        ("雪の中の２匹の犬", "雪の中の2匹の犬"),
        ("ﾄﾞｱの前のﾊﾟﾝ", "ドアの前のパン"),
        # As they are: these are no widths, and NFKC would change each of them.
        ("น้ำ", "น้ำ"),
        ("ㅋㅋ", "ㅋㅋ"),
        ("m² … ½", "m² … ½"),
        ("图片：雪地，两只狗！", "图片：雪地，两只狗！"),
    ],
)
def test_what_means_the_same_is_asked_in_one_form(written: str, meant: str) -> None:
    """CASES 43."""
    assert normalized(written) == meant
    assert normalized(meant) == meant


def test_captions_of_all_languages_are_asked_as_they_are() -> None:
    """CASES 43: no ordinary text becomes another, and each one's NFD becomes it again."""
    for language in load_vocabularies().values():
        for scene in all_scenes():
            for caption in language.captions(scene):
                assert normalized(caption) == caption
                assert normalized(unicodedata.normalize("NFD", caption)) == caption
