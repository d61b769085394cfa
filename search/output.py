"""Results as lines, as JSON, or as a contact sheet."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from search.errors import SearchError
from search.finder import Found
from search.paths import printable
from search.thumbnails import EDGE

COLUMNS = 5
MARGIN = 12
LINE = 22


def print_plain(results: Sequence[Found]) -> None:
    """One line for each picture: cosine similarity and path."""
    for found in results:
        if len(results) > 1:
            print(printable(found.query))
        for hit in found.hits:
            print(f"{hit.score:7.4f}  {printable(hit.path)}")
        if not found.hits:
            print("nothing found")
        if len(results) > 1:
            print()


def print_json(results: Sequence[Found]) -> None:
    """A list with an object for each query; paths are in the text form of `search.paths`."""
    answer = [
        {
            "query": found.query,
            "results": [{"path": hit.path, "cosine_similarity": round(hit.score, 6)} for hit in found.hits],
        }
        for found in results
    ]
    json.dump(answer, sys.stdout, ensure_ascii=False, indent=2)
    print()


def write_contact_sheet(results: Sequence[Found], path: Path) -> None:
    """A PNG with a block for each query: thumbnails with rank and cosine similarity.

    Queries are numbered, not written out: Pillow shapes no Arabic or Thai, and carries no font for most
    scripts.

    Raises:
        SearchError: nothing was found.
        OSError: the file cannot be written.
    """
    if not any(found.hits for found in results):
        raise SearchError(f"{printable(str(path))}: not written, since nothing was found")
    cell = EDGE + MARGIN
    rows = [-(-len(found.hits) // COLUMNS) for found in results]
    heights = [MARGIN + LINE + count * (cell + LINE) for count in rows]
    columns = min(COLUMNS, max(len(found.hits) for found in results))
    sheet = Image.new("RGB", (MARGIN + columns * cell, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    top = 0
    for number, (found, height) in enumerate(zip(results, heights, strict=True), start=1):
        draw.text((MARGIN, top + MARGIN), f"query {number}", "black", font)
        for rank, hit in enumerate(found.hits):
            row, column = divmod(rank, COLUMNS)
            left, upper = MARGIN + column * cell, top + MARGIN + LINE + row * (cell + LINE)
            with Image.open(io.BytesIO(hit.thumbnail)) as thumbnail:
                inset = (EDGE - thumbnail.width) // 2, (EDGE - thumbnail.height) // 2
                sheet.paste(thumbnail, (left + inset[0], upper + inset[1]))
            draw.text((left, upper + EDGE + 3), f"{rank + 1}   {hit.score:.4f}", "black", font)
        top += height
    sheet.save(path, "PNG")
