"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """A table with its last line's end; a cell that is empty takes one space."""
    lines = [f"| {' | '.join(cells)} |".replace("  ", " ") for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]]) + "\n"
