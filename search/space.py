"""One embedding space: what the server embeds is compared with a table of its own space only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from clipserve.errors import SpaceError
from pictures.paths import printable
from pictures.table import PictureTable


def require_server_space(table: PictureTable, space_id: str) -> None:
    """Refuses a server that embeds in another space than the table's.

    Raises:
        PicturesError: it is such a server.
    """
    folder = printable(str(table.folder))
    table.require_space(
        space_id,
        "the server",
        "serve the first, or index into a table of its own: make index IMAGES=folder "
        f"TABLE={folder}-{space_id[:6]}, or embed everything anew into this one: make index IMAGES=folder "
        f"TABLE={folder} AGAIN=1",
    )


@contextlib.contextmanager
def of_space(table: PictureTable) -> Iterator[None]:
    """Around requests: an answer in another space than the table's, as of a server that was exchanged.

    Raises:
        PicturesError: there was one.
    """
    try:
        yield
    except SpaceError as error:
        require_server_space(table, error.space_id)
        raise
