"""Files of a table that are equal, and pictures that are nearly so. Lists them; nothing is ever deleted.

Equal is by SHA-256. Nearly equal is by cosine similarity, from `THRESHOLD` on. Measured with the demo
checkpoint on 392 drawn pictures against changed copies of themselves, and on the 1.9 million pairs of 1,960
different ones:

| of the changed copies, found | 0.95 | 0.97 | 0.98 | 0.99 |
|---|---|---|---|---|
| WebP, PNG, JPEG at quality 50, half and double size | 100 % | 100 % | 100 % | 100 % |
| JPEG at quality 20 | 100 % | 99.7 % | 99.2 % | 98.2 % |
| brightness + 10 % | 100 % | 100 % | 99.5 % | 91.3 % |
| 1 % cut off at each side | 100 % | 99.7 % | 99.5 % | 95.2 % |
| 3 % cut off at each side | 80 % | 59 % | 40 % | 17 % |
| pairs of different pictures taken for such | 282 | 72 | 21 | 5 |

All 21 show the same things at the same place. Another encoder pair spreads its pictures otherwise.
"""

from __future__ import annotations

import base64
import html
import json
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clipserve.encoder_spec import FloatArray
from clipserve.similarity import unit_vectors
from pictures.paths import printable, text_to_path
from pictures.table import PictureTable

THRESHOLD = 0.98

# Embeddings that are compared at once, with so many others: 256 x 16,384 similarities are 16 MB.
ROWS, COLUMNS = 256, 16_384

# The page holds their pictures, of about 13 kB each; JSON has all.
GROUPS_ON_PAGE = 1000


@dataclass(frozen=True)
class Equal:
    """Files of the same bytes; `size` is that of each, `paths` are sorted and in text form."""

    sha256: str
    size: int
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Similar:
    """Different files, each nearly equal to the first; `scores` are cosine similarities with that.

    Of equal files only the first is named.
    """

    paths: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Duplicates:
    """What a table holds more than once; the largest groups first."""

    equal: list[Equal]
    similar: list[Similar]
    threshold: float

    @property
    def bytes_of_copies(self) -> int:
        """What the equal files take beyond one of each."""
        return sum(group.size * (len(group.paths) - 1) for group in self.equal)


def find_duplicates(table: PictureTable, threshold: float = THRESHOLD) -> Duplicates:
    """Groups all rows of a table.

    Every picture is compared with every other: 512-d, on one core of an Intel Xeon with AVX512, that takes
    0.6 s for 10,000, 5 s for 30,000, and about a minute for 100,000.
    """
    files: dict[str, list[str]] = {}
    sizes = {}
    for path, state in sorted(table.states().items()):
        files.setdefault(state.sha256, []).append(path)
        sizes[state.sha256] = state.size
    equal = [Equal(name, sizes[name], tuple(paths)) for name, paths in files.items() if len(paths) > 1]
    equal.sort(key=lambda group: -len(group.paths))
    hashes, embeddings = table.embeddings()
    # In the order of the paths, so that a run over the same files says the same.
    order = sorted(range(len(hashes)), key=lambda row: files.get(hashes[row], [""])[0])
    known = [row for row in order if hashes[row] in files]
    similar = [
        Similar(tuple(files[hashes[known[row]]][0] for row in rows), scores)
        for rows, scores in similar_rows(embeddings[known], threshold)
    ]
    similar.sort(key=lambda group: -len(group.paths))
    return Duplicates(equal, similar, threshold)


def similar_rows(embeddings: FloatArray, threshold: float) -> Iterator[tuple[list[int], tuple[float, ...]]]:
    """Groups of rows, each row with all later ones of no group yet that are similar to it.

    Not whatever hangs together: a chain of small steps would join what is different.

    Args:
        embeddings: float32 `[N, D]`, not zero.
        threshold: least cosine similarity with the first of a group.

    Yields:
        Row numbers, and cosine similarities with the first of them.
    """
    unit = unit_vectors(embeddings)
    free = np.ones(len(unit), bool)
    for first in range(0, len(unit), ROWS):
        near: dict[int, list[tuple[int, float]]] = {}
        for start in range(first, len(unit), COLUMNS):
            scores = unit[first : first + ROWS] @ unit[start : start + COLUMNS].T
            for row, column in zip(*np.nonzero(scores >= threshold), strict=True):
                one, other = first + int(row), start + int(column)
                if other > one and free[other]:
                    near.setdefault(one, []).append((other, float(scores[row, column])))
        for one in sorted(near):
            members = [(other, score) for other, score in near[one] if free[other]]
            if free[one] and members:
                rows = [one, *(other for other, _ in members)]
                free[rows] = False
                yield rows, (1.0, *(score for _, score in members))


def to_json(duplicates: Duplicates) -> str:
    """An object with `equal` and `similar`; paths are in the text form of `pictures.paths`."""
    answer = {
        "threshold": duplicates.threshold,
        "bytes_of_copies": duplicates.bytes_of_copies,
        "equal": [
            {"sha256": group.sha256, "bytes": group.size, "paths": group.paths} for group in duplicates.equal
        ],
        "similar": [
            {"paths": group.paths, "cosine_similarity": [round(score, 6) for score in group.scores]}
            for group in duplicates.similar
        ],
    }
    return json.dumps(answer, ensure_ascii=False, indent=2)


def read_json(text: str) -> Duplicates:
    """What `to_json` wrote."""
    answer = json.loads(text)
    equal = [Equal(group["sha256"], group["bytes"], tuple(group["paths"])) for group in answer["equal"]]
    similar = [
        Similar(tuple(group["paths"]), tuple(group["cosine_similarity"])) for group in answer["similar"]
    ]
    return Duplicates(equal, similar, answer["threshold"])


def summary(duplicates: Duplicates) -> str:
    """One line."""
    equal = sum(len(group.paths) for group in duplicates.equal)
    similar = sum(len(group.paths) for group in duplicates.similar)
    return (
        f"{equal} equal files in {len(duplicates.equal)} groups "
        f"({duplicates.bytes_of_copies / 1e6:.1f} MB of copies), "
        f"{similar} nearly equal pictures in {len(duplicates.similar)} groups (of cosine "
        f"{duplicates.threshold:g} and more); nothing was deleted"
    )


def to_html(duplicates: Duplicates, table: PictureTable) -> str:
    """A page without scripts, with the thumbnails in it and links to the files."""
    groups: list[tuple[str, Sequence[str], Sequence[str]]] = [
        (f"equal, {group.size} bytes each", group.paths, [""] * len(group.paths))
        for group in duplicates.equal
    ]
    groups += [
        ("nearly equal", group.paths, [f"{score:.4f}" for score in group.scores])
        for group in duplicates.similar
    ]
    shown = groups[:GROUPS_ON_PAGE]
    thumbnails = table.thumbnails(path for _, paths, _ in shown for path in paths)
    body = [f"<p>{html.escape(summary(duplicates))}</p>"]
    for title, paths, notes in shown:
        figures = "".join(
            _figure(path, note, thumbnails.get(path)) for path, note in zip(paths, notes, strict=True)
        )
        body.append(f"<h2>{len(paths)} {title}</h2><div>{figures}</div>")
    if len(groups) > len(shown):
        body.append(f"<p>and {len(groups) - len(shown)} groups more; JSON has all</p>")
    return _PAGE.format("\n".join(body))


_PAGE = """<!doctype html>
<meta charset="utf-8"><title>Duplicates</title>
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em }} h2 {{ font-size: 1em; margin: 2em 0 .5em }}
div {{ display: flex; flex-wrap: wrap; gap: 1em }}
figure {{ margin: 0; width: 224px; overflow-wrap: anywhere }}
img {{ display: block; max-width: 224px; max-height: 224px }}
</style>
{}
"""


def _figure(path: str, note: str, thumbnail: bytes | None) -> str:
    address = "file://" + urllib.parse.quote(text_to_path(path))
    picture = "" if thumbnail is None else base64.b64encode(thumbnail).decode()
    return (
        f'<figure><a href="{html.escape(address)}"><img alt="" src="data:image/jpeg;base64,{picture}"></a>'
        f'<figcaption dir="auto">{note} {html.escape(printable(path))}</figcaption></figure>'
    )
