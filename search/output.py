"""Results as lines, as JSON, or as a contact sheet."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from pictures.facts import UNKNOWN, Facts
from pictures.paths import printable
from pictures.thumbnails import EDGE
from search.errors import SearchError
from search.finder import Found
from search.fonts import font_for

COLUMNS = 5
MARGIN = 12
LINE = 22
TEXT_SIZE = 15
BLACK, GREY = "black", "#555555"


def print_plain(results: Sequence[Found]) -> None:
    """One line for each picture: cosine similarity and path; its copies below it."""
    for found in results:
        if len(results) > 1:
            print(printable(found.query))
        for hit in found.hits:
            print(f"{hit.score:7.4f}  {printable(hit.path)}")
            for copy in hit.copies:
                print(f"      =  {printable(copy)}")
        if not found.hits:
            print("nothing found")
        if len(results) > 1:
            print()


def print_json(results: Sequence[Found], facts: Mapping[str, Facts]) -> None:
    """A list with an object for each query; paths are in the text form of `pictures.paths`.

    Args:
        results: the queries and what was found.
        facts: of the paths that were found; what is not known is left out.
    """
    answer = [
        {
            "query": found.query,
            "results": [
                {
                    "path": hit.path,
                    "cosine_similarity": round(hit.score, 6),
                    "standard_score": round(found.standard_score(hit), 3),
                    **({"copies": hit.copies} if hit.copies else {}),
                    **_known(facts.get(hit.path, UNKNOWN)),
                }
                for hit in found.hits
            ],
        }
        for found in results
    ]
    json.dump(answer, sys.stdout, ensure_ascii=False, indent=2)
    print()


def _known(facts: Facts) -> dict[str, object]:
    known = {name: value for name, value in vars(facts).items() if value}
    if facts.taken is not None:
        known["taken"] = facts.taken.isoformat()
    return known


def write_contact_sheet(
    results: Sequence[Found], thumbnails: Mapping[str, bytes], path: Path, notes: Sequence[str] = ()
) -> None:
    """A PNG with a block for each query: its text, and thumbnails with rank, cosine similarity and file name.

    A text in a script that this system has no font for is left out; its number then tells which query it is.

    Args:
        results: the queries and what was found.
        thumbnails: of the paths that were found.
        path: the file to write.
        notes: in English, one for each query; shown after it.

    Raises:
        SearchError: nothing was found.
        OSError: the file cannot be written.
    """
    if not any(found.hits for found in results):
        raise SearchError(f"{printable(str(path))}: not written, since nothing was found")
    titles = [
        [
            (f"{number}.", GREY),
            (printable(found.query), BLACK),
            *((note, GREY) for note in notes[number - 1 : number]),
        ]
        for number, found in enumerate(results, start=1)
    ]
    cell = EDGE + MARGIN
    rows = [-(-len(found.hits) // COLUMNS) for found in results]
    heights = [MARGIN + LINE + count * (cell + 2 * LINE) for count in rows]
    columns = min(COLUMNS, max(len(found.hits) for found in results))
    width = max(columns * cell, *(_draw_line(None, (0, 0), title) for title in titles))
    sheet = Image.new("RGB", (MARGIN + width, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for found, title, height in zip(results, titles, heights, strict=True):
        _draw_line(draw, (MARGIN, top + MARGIN), title)
        for rank, hit in enumerate(found.hits):
            row, column = divmod(rank, COLUMNS)
            left, upper = MARGIN + column * cell, top + MARGIN + LINE + row * (cell + 2 * LINE)
            # A row may have gone since.
            if small := thumbnails.get(hit.path):
                with Image.open(io.BytesIO(small)) as thumbnail:
                    thumbnail.thumbnail((EDGE, EDGE))  # a panorama's is wider
                    inset = (EDGE - thumbnail.width) // 2, (EDGE - thumbnail.height) // 2
                    sheet.paste(thumbnail, (left + inset[0], upper + inset[1]))
            copies = f"   and {len(hit.copies)} copies" if hit.copies else ""
            _draw_line(draw, (left, upper + EDGE + 3), [(f"{rank + 1}   {hit.score:.4f}{copies}", GREY)])
            _draw_line(draw, (left, upper + EDGE + 3 + LINE), [(_shortened(hit.path), BLACK)])
        top += height
    sheet.save(path, "PNG")


def _draw_line(
    draw: ImageDraw.ImageDraw | None, place: tuple[int, int], parts: Sequence[tuple[str, str]]
) -> int:
    """Draws texts of different scripts and colours one after the other; gives the width, in pixels.

    Args:
        draw: None only measures.
        place: left and upper corner.
        parts: text and colour.
    """
    left, upper = place
    for text, colour in parts:
        font = font_for(text, TEXT_SIZE)
        if font is not None:
            if draw is not None:
                # By the base line: fonts of different scripts differ in what is above it.
                draw.text((left, upper + TEXT_SIZE), text, colour, font, anchor="ls")
            left += round(font.getlength(text)) + MARGIN
    return left - place[0]


def _shortened(path: str) -> str:
    """The end of a file's name, as much as is as wide as its thumbnail."""
    name = printable(path.rpartition("/")[2])
    font = font_for(name, TEXT_SIZE)
    if font is None or font.getlength(name) <= EDGE:
        return name
    while font.getlength("..." + name) > EDGE:
        name = name[1:]
    return "..." + name
