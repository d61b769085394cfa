"""`make demo-search`: draws a folder of pictures, indexes it, and asks for them in ten languages."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from clipserve.arguments import Parser, path
from clipserve.command import run_command
from clipserve.interrupt import interrupt_on_sigterm, say_what_ends_it
from demo.captions import load_vocabularies
from demo.scenes import draw
from demo.world import RUNNING_EXAMPLE, Scene, all_scenes
from pictures.table import open_table
from search.finder import Finder
from search.indexer import index_folder
from search.output import write_contact_sheet
from search.report import print_report
from serving.running import running_torchserve

# Five of every scene, as one has several of what one looks for. Of one of each, the small checkpoint found it
# first for 88 % of all captions (in these ten languages), of two one of them for 93 %, of five for 98 %.
PICTURES = 5 * 392
SIZE = (320, 240)
FIRST_SEED = 9_000_000  # other pictures than those of the training
SHOWN = 5

QUERIES = (
    ("hu", RUNNING_EXAMPLE[0]),
    ("en", RUNNING_EXAMPLE[1]),
    ("ja", RUNNING_EXAMPLE[2]),
    ("ar", Scene("sea", "boat", 1)),
    ("fa", Scene("grass", "flower", 3)),
    ("ru", Scene("beach", "umbrella", 2)),
    ("hi", Scene("forest", "bird", 2)),
    ("ko", Scene("desert", "car", 1)),
    ("th", Scene("table", "cup", 3)),
    ("el", Scene("snow", "house", 1)),
)


def draw_pictures(folder: Path, count: int) -> None:
    """Writes `count` JPEGs into `folder`, scene after scene; those that are there already are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = all_scenes()
    for number in range(count):
        scene = scenes[number % len(scenes)]
        file = folder / f"{scene.name}-{number // len(scenes)}.jpg"
        if not file.exists():
            draw(scene, FIRST_SEED + number, SIZE).save(file, quality=88)


def run(store: Path, work: Path) -> None:
    """The demo on a server of its own; pictures, table and contact sheet stay in `work`."""
    print(f"drawing {PICTURES} pictures into {work / 'pictures'}", flush=True)
    draw_pictures(work / "pictures", PICTURES)
    vocabularies = load_vocabularies()
    captions = [vocabularies[code].captions(scene)[0] for code, scene in QUERIES]
    notes = [f"{vocabularies[code].name}: {vocabularies['en'].captions(scene)[0]}" for code, scene in QUERIES]
    print("starting TorchServe on free ports", flush=True)
    with running_torchserve(store) as server, server.client() as client:
        print_report(index_folder(client, work / "pictures", work / "table"))
        table = open_table(work / "table")
        results = Finder(client, table, SHOWN).by_texts(captions)
    first = right = 0
    for (_, scene), note, found in zip(QUERIES, notes, results, strict=True):
        names = [Path(hit.path).stem.rpartition("-")[0] for hit in found.hits]
        first += names[0] == scene.name
        right += names.count(scene.name)
        print(f"\n{found.query}   ({note})")
        for name, hit in zip(names, found.hits, strict=True):
            print(f"  {hit.score:.4f}  {Path(hit.path).name}{'   <-' if name == scene.name else ''}")
    sheet = work / "found.png"
    thumbnails = table.thumbnails(hit.path for found in results for hit in found.hits)
    write_contact_sheet(results, thumbnails, sheet, notes)
    print(
        f"\nfirst hit right for {first} of {len(QUERIES)} queries, "
        f"{right} of all {len(QUERIES) * SHOWN} hits are right"
    )
    print(f"contact sheet: {sheet}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = Parser(prog="python -m search.demo", description=__doc__)
    parser.add_argument("--store", type=path, required=True, help="folder of the archives")
    parser.add_argument("--work", type=path, default=Path(".search/demo"), help="folder for what is made")
    arguments = parser.parse_args(argv)
    say_what_ends_it(sys.stderr)
    interrupted = "interrupted; what was done is kept, and the same command goes on from there"
    return run_command("search demo", lambda: run(arguments.store, arguments.work), interrupted)


if __name__ == "__main__":
    interrupt_on_sigterm()
    sys.exit(main())
