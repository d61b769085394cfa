"""What is done to a text before it becomes tokens, as models were trained: steps of a `tokenizer.json`."""

from __future__ import annotations

import re
import string
import unicodedata

from tokenizers import Regex, normalizers

# `tokenizers` lowers each letter by itself, and so knows no sigma at a word's end.
LOWER_CASE = (
    normalizers.Replace(Regex(r"(?<=[\p{L}\p{M}])Σ(?!\p{M}*\p{L})"), "ς"),
    normalizers.Lowercase(),
)
WITHOUT_PUNCTUATION = normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), "")
SINGLE_BLANKS = (normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip())

# Of what ftfy 6.3 mends (`ftfy.chardata`), what a single character tells: forms of another width, ligatures,
# curled quotes, and control characters. Mojibake and HTML it tells by what stands around it.
MENDED = {
    "\u3000": " ",
    **{
        character: plain
        for character in map(chr, (*range(0xFF01, 0xFFF0), *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4)))
        if (plain := unicodedata.normalize("NFKC", character)) != character
    },
    **{character: unicodedata.normalize("NFKC", character) for character in "Ĳĳŉﬀﬁﬂﬃﬄﬆ"},
    "ﬅ": "ſt",
}
SINGLE_QUOTES, DOUBLE_QUOTES = "[\u02bc\u2018-\u201b]", "[\u201c-\u201f]"
REMOVED = "[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]"
MENDING = (
    *(normalizers.Replace(character, plain) for character, plain in MENDED.items()),
    normalizers.Replace(Regex(SINGLE_QUOTES), "'"),
    normalizers.Replace(Regex(DOUBLE_QUOTES), '"'),
    normalizers.Replace(Regex(REMOVED), ""),
    normalizers.NFC(),
)
