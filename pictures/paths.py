r"""File names as text: any bytes in, valid Unicode out, and back again.

A file name on Linux is bytes. Arrow's strings, JSON and a browser want valid UTF-8. A name in valid UTF-8 is
stored as it is, but for the backslash, which is doubled; every byte that is not valid UTF-8 becomes `\xNN`.
"""

from __future__ import annotations

import re
import unicodedata

_ESCAPED = re.compile(r"\\(?:\\|x([0-9a-f]{2}))")


def path_to_text(path: bytes) -> str:
    r"""The text form of a path.

    | path              | text         |
    |-------------------|--------------|
    | `b"/a/kutya.jpg"` | `/a/kutya.jpg` |
    | `b"/a/\xff.jpg"`  | `/a/\xff.jpg` (four characters) |
    | `b"/a/b\\c.jpg"`  | `/a/b\\c.jpg` (two backslashes) |
    """
    return path.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def text_to_path(text: str) -> bytes:
    """The path that `path_to_text` gave `text` for."""
    parts = []
    end = 0
    for match in _ESCAPED.finditer(text):
        parts += [text[end : match.start()].encode(), bytes.fromhex(match[1]) if match[1] else b"\\"]
        end = match.end()
    return b"".join([*parts, text[end:].encode()])


def printable(text: str) -> str:
    """Text for a terminal: line ends and control characters escaped, so that a name cannot forge output."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def sql_text(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def folded(text: str) -> str:
    """Text in the form in which it is compared: without regard to case and to how accents are encoded.

    Unicode's canonical caseless match (its section 3.13, D145): macOS gives names in NFD, everything else in
    NFC, and both mean the same to whoever types them.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def path_condition(pattern: str) -> str:
    """The SQL condition that a path contains `pattern`, in which `*` and `?` stand for any characters or one.

    The pattern is given in the text form that results show; case and the encoding of accents do not count,
    see `folded`. SQL's own wildcards mean themselves.
    """
    escaped = re.sub(r"[\\%_]", r"\\\g<0>", folded(pattern)).replace("*", "%").replace("?", "_")
    return f"folded_path LIKE {sql_text(f'%{escaped}%')}"


def below_condition(folder: str) -> str:
    """The SQL condition that a path is `folder` or lies below it; exact, since it is for removing."""
    inner = folder.rstrip("/") + "/"
    return f"(path = {sql_text(folder)} OR starts_with(path, {sql_text(inner)}))"
