"""Fonts for any script: Pillow shapes and orders its letters, but carries a font for plain English only."""

from __future__ import annotations

import functools
import shutil
import subprocess

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# In no font: what is drawn for it is what is drawn for every letter that a font lacks.
NOT_A_LETTER = "\uffff"


def font_for(text: str, size: int) -> Font | None:
    """Pillow's own font or one of this system, whichever has all letters of a text.

    Fontconfig, which nearly every Linux with a screen has, knows the system's.

    Args:
        text: what is to be drawn.
        size: pixels.

    Returns:
        None where no font is known that has them all.
    """
    letters = "".join(sorted({letter for letter in text if letter.isprintable() and not letter.isspace()}))
    return _font(letters, size)


@functools.lru_cache(1000)
def _font(letters: str, size: int) -> Font | None:
    font: Font = ImageFont.load_default(size)
    if _has(font, letters):
        return font
    fontconfig = shutil.which("fc-match")
    if fontconfig is None:
        return None
    wanted = ":charset=" + " ".join(f"{ord(letter):x}" for letter in letters)
    found = subprocess.run([fontconfig, "-f", "%{index} %{file}", wanted], capture_output=True, text=True)
    index, _, file = found.stdout.partition(" ")
    try:
        font = ImageFont.truetype(file, size, int(index))
    except (OSError, ValueError):
        return None
    return font if _has(font, letters) else None


def _has(font: Font, letters: str) -> bool:
    lacking = _drawn(font, NOT_A_LETTER)
    return all(_drawn(font, letter) != lacking for letter in letters)


def _drawn(font: Font, letter: str) -> bytes:
    return bytes(font.getmask(letter))
