"""Takes a folder out of the table."""

from __future__ import annotations

import os
from pathlib import Path

from pictures.paths import path_to_text, printable
from pictures.storage import sole_writer
from pictures.table import open_table
from search.errors import SearchError


def forget_folder(root: Path, folder: Path) -> int:
    """Removes the rows of what lies, or lay, below `root` from the table in `folder`.

    Returns:
        How many there were.

    Raises:
        SearchError: there are none.
        PicturesError: the table cannot be read or written.
    """
    table = open_table(folder)
    # By its name and by what it leads to: the second is what rows have, and the first if the link is gone.
    places = {path_to_text(os.fsencode(place)) for place in (root.resolve(), root.absolute())}
    with sole_writer(folder, lambda: print("an indexer is writing to this table: waiting", flush=True)):
        count = sum(map(table.forget_below, places))
    if not count:
        raise SearchError(
            f"{printable(str(root))}: none of the {len(table)} rows of {printable(str(folder))} is of a "
            "picture below it"
        )
    return count
