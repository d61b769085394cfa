"""A matrix of cosine similarities as an HTML table: the browser has fonts and shaping for every script."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from search.thumbnails import make_thumbnail

HIGHEST = (37, 99, 235)  # red, green, blue; the lowest cell is white


def render(images: Sequence[Path], texts: Sequence[str], cosines: npt.NDArray[np.float64]) -> str:
    """The table: a row for each picture, a column for each text; the darker a cell, the more similar.

    Args:
        cosines: `[images, texts]`.
    """
    low, high = float(cosines.min()), float(cosines.max())
    head = "".join(f'<th dir="auto" scope="col">{html.escape(text)}</th>' for text in texts)
    rows = "".join(
        f'<tr><th scope="row">{_picture(image)}</th>{"".join(_cell(c, low, high) for c in row)}</tr>'
        for image, row in zip(images, cosines.tolist(), strict=True)
    )
    return (
        '<table class="heat-map" style="border-collapse: collapse; width: 100%">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _cell(cosine: float, low: float, high: float) -> str:
    share = (cosine - low) / (high - low) if high > low else 0.5
    colour = ", ".join(f"{255 - share * (255 - part):.0f}" for part in HIGHEST)
    ink = "white" if share > 0.75 else "black"
    style = f"background: rgb({colour}); color: {ink}; text-align: center; padding: 8px"
    return f'<td style="{style}">{cosine:.3f}</td>'


def _picture(image: Path) -> str:
    thumbnail = base64.b64encode(make_thumbnail(image.read_bytes())).decode()
    return (
        f'<img alt="{html.escape(image.name)}" title="{html.escape(image.name)}" '
        f'src="data:image/jpeg;base64,{thumbnail}" style="height: 72px">'
    )
