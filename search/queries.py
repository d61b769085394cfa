"""The form of a text in which it is asked for.

The server embeds what it is given, letter for letter as the original does, and for it `é` of one code point
and `e` with a combining accent are different texts, as are `A` and the full-width `Ａ`. People type, paste
and read from file names what means the same; so whoever asks on a person's behalf normalises first.
"""

from __future__ import annotations

import unicodedata


def _ordinary_widths() -> dict[int, str]:
    """U+3000 and the block "Halfwidth and Fullwidth Forms" without full-width punctuation.

    That is the ordinary punctuation of Chinese and Japanese.
    """
    found = {}
    for number in (0x3000, *range(0xFF00, 0xFFF0)):
        width, _, ordinary = unicodedata.decomposition(chr(number)).partition(" ")
        if width == "<narrow>" or (width == "<wide>" and unicodedata.category(chr(number))[0] in "LNZ"):
            found[number] = chr(int(ordinary, 16))
    return found


_WIDTHS = _ordinary_widths()


def normalized(text: str) -> str:
    """Text in NFC, with the ordinary forms of full-width letters and digits and of half-width characters.

    Not NFKC, which would bring widths into order as well: it also takes apart what the encoders' texts had
    whole, as the vowel SARA AM of every other Thai sentence.
    """
    return unicodedata.normalize("NFC", text.translate(_WIDTHS))
