"""`python -m search`: index a folder of pictures, search it, or open the page; what the Makefile calls."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from clipserve.arguments import Parser, path, port, whole
from clipserve.client import INFERENCE_URL, KEY_FILE, MANAGEMENT_URL, Client, KeyFile
from clipserve.command import run_command
from clipserve.errors import ClipServeError
from clipserve.interrupt import interrupt_on_sigterm, say_what_ends_it
from pictures.exclusions import add_exclude_option
from pictures.filters import Filter
from pictures.paths import printable
from pictures.table import open_table
from search.bulk_lines import ENGINES, write_bulk_lines
from search.duplicates import THRESHOLD, find_duplicates, summary, to_html, to_json
from search.errors import SearchError
from search.finder import Finder
from search.forget import forget_folder
from search.indexer import index_folder
from search.output import print_json, print_plain, write_contact_sheet
from search.report import print_report

TABLE = Path(".search/pictures")
BULK_LINES = Path(".search")
LIMIT = 10


def index(arguments: argparse.Namespace) -> None:
    """Brings the table to what lies in a folder, or takes a folder out of it."""
    if arguments.forget is not None:
        print(f"{forget_folder(arguments.forget, arguments.table)} rows removed; no file was touched")
        return
    say_what_ends_it(sys.stderr)
    with _client(arguments) as client:
        words = client, arguments.images, arguments.table
        # Of what is followed, no disk is known yet to be away.
        away = None if arguments.watch is None else tuple
        print_report(index_folder(*words, exclude=arguments.exclude, again=arguments.again, away=away))
        if arguments.watch is None:
            return
        from search.watching import follow

        print(f"watching {printable(str(arguments.images))} (Ctrl-C ends it)", flush=True)
        for told in follow(*words, exclude=arguments.exclude, poll=arguments.watch == "poll"):
            if isinstance(told, ClipServeError):
                print(f"{printable(str(told))}; tried again", file=sys.stderr, flush=True)
            elif told.written or told.removed or told.missing:
                print_report(told)
                sys.stdout.flush()  # in a log, too, it is read while it goes on


def search(arguments: argparse.Namespace) -> None:
    """Finds pictures by a text, by another picture, or by every line of a file of texts."""
    table = open_table(arguments.table)
    with _client(arguments) as client:
        which = Filter(arguments.path, arguments.camera, arguments.place, arguments.since, arguments.until)
        finder = Finder(client, table, arguments.limit, arguments.least, which)
        if arguments.text is not None:
            results = [finder.by_query(arguments.text)]
        elif arguments.image is not None:
            results = [finder.by_image(arguments.image)]
        else:
            results = finder.by_texts(_captions(arguments.captions))
    if arguments.sheet is not None:
        thumbnails = table.thumbnails(hit.path for found in results for hit in found.hits)
        write_contact_sheet(results, thumbnails, arguments.sheet)
        for number, found in enumerate(results, start=1):
            print(f"{number}. {printable(found.query)}: {len(found.hits)} pictures")
        print(arguments.sheet)
    elif arguments.json:
        print_json(results, table.facts(hit.path for found in results for hit in found.hits))
    else:
        print_plain(results)


def duplicates(arguments: argparse.Namespace) -> None:
    """Lists equal files and nearly equal pictures of the table; deletes nothing, and needs no server."""
    table = open_table(arguments.table)
    found = find_duplicates(table, arguments.threshold)
    if arguments.page is not None:
        arguments.page.write_text(to_html(found, table), encoding="utf-8")
    if arguments.json:
        print(to_json(found))
        return
    for equal in found.equal:
        print(f"equal, {equal.size} bytes each", *map(printable, equal.paths), sep="\n  ")
    for similar in found.similar:
        print("nearly equal")
        for score, name in zip(similar.scores, similar.paths, strict=True):
            print(f"  {score:.4f}  {printable(name)}")
    print(summary(found))
    if arguments.page is not None:
        print(arguments.page)


def bulk_lines(arguments: argparse.Namespace) -> None:
    """Writes the table as documents for the _bulk API of another search engine, which needs no server."""
    output = arguments.output or BULK_LINES / arguments.engine
    documents, requests = write_bulk_lines(open_table(arguments.table), arguments.engine, output)
    print(f"{documents} pictures in {requests} requests for {arguments.engine}, and their mapping: {output}")


def ui(arguments: argparse.Namespace) -> None:
    """Serves the page on 127.0.0.1."""
    from search.page.application import serve_page

    say_what_ends_it(sys.stderr)
    # Without retries: whoever looks at the page is told at once, and asks again at leisure.
    serve_page(partial(_client, arguments, retries=False), arguments.table, arguments.port)


def _captions(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SearchError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise SearchError(f"{path}: no captions; write one on each line")
    return captions


def _client(arguments: argparse.Namespace, retries: bool = True) -> Client:
    keys = KeyFile(arguments.key_file, arguments.management_url)
    return Client(arguments.url, arguments.management_url, keys, retries=retries)


def _folder(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("no folder of pictures is named; name one: make index IMAGES=folder")
    return path(text)


def _query(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(
            "nothing to look for; say what: make search TEXT='two dogs in the snow'"
        )
    return text


def _number(least: float, most: float, what: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: {what} is between {least:g} and {most:g}")
        return value

    return read


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m search", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__.replace("_", "-"), help=run.__doc__)
        added.set_defaults(run=run)
        added.add_argument("--table", type=path, default=TABLE, help=f"folder of the table ({TABLE})")
        server = added.add_argument_group("the server (by default the one of 'make serve')")
        server.add_argument("--url", default=INFERENCE_URL)
        server.add_argument("--management-url", default=MANAGEMENT_URL)
        server.add_argument("--key-file", type=path, default=KEY_FILE)
        return added

    of_index = command(index)
    folder = of_index.add_mutually_exclusive_group(required=True)
    folder.add_argument("images", type=_folder, nargs="?", help="folder of pictures")
    folder.add_argument(
        "--forget", type=path, metavar="FOLDER", help="remove the rows of its pictures; no file is touched"
    )
    add_exclude_option(of_index)
    of_index.add_argument(
        "--again",
        action="store_true",
        help="embed anew what is of another embedding space, and ask again for what the server failed on",
    )

    of_index.add_argument(
        "--watch",
        choices=("1", "poll"),
        help="go on, and follow its changes; on network disks: poll, which looks at all files",
    )

    of_search = command(search)
    query = of_search.add_mutually_exclusive_group(required=True)
    query.add_argument(
        "--text", type=_query, help="what to look for, in any language: 'beach + ./dog.jpg - 0.5*people'"
    )
    query.add_argument("--image", type=path, help="a picture to look for others like it")
    query.add_argument("--captions", type=path, help="UTF-8 file with a text on each line")
    of_search.add_argument(
        "--limit", type=whole(1, 10_000), default=LIMIT, help=f"pictures of a query ({LIMIT})"
    )
    of_search.add_argument(
        "--least",
        type=_number(0, 10, "a standard score"),
        help="by how many standard deviations a picture is more similar than pictures at random, at least",
    )
    of_search.add_argument(
        "--path", default="", help="part of the path, as results show it; * and ? are wildcards"
    )
    of_search.add_argument("--camera", default="", help="part of its maker's and model's name")
    of_search.add_argument("--place", default="", help="part of the town's or the country's name")
    of_search.add_argument("--since", default="", help="taken then or later: 2024-05-31, 2024-05 or 2024")
    of_search.add_argument("--until", default="", help="taken then or earlier, to the end of it")
    output = of_search.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="JSON instead of lines")
    output.add_argument("--sheet", type=path, metavar="PNG", help="write a contact sheet")

    of_duplicates = command(duplicates)
    of_duplicates.add_argument(
        "--threshold",
        type=_number(-1, 1, "a cosine similarity"),
        default=THRESHOLD,
        help=f"least cosine similarity ({THRESHOLD})",
    )
    of_duplicates.add_argument(
        "--page", type=path, metavar="HTML", help="write a page with the pictures, too"
    )
    of_duplicates.add_argument("--json", action="store_true", help="JSON instead of lines")

    of_bulk_lines = command(bulk_lines)
    of_bulk_lines.add_argument(
        "--for", dest="engine", choices=ENGINES, required=True, help="the engine that is to take them"
    )
    of_bulk_lines.add_argument(
        "--output", type=path, metavar="FOLDER", help=f"where they are written ({BULK_LINES}/ENGINE)"
    )

    command(ui).add_argument("--port", type=port, default=7860, help="of 127.0.0.1 (7860)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    arguments = _parser().parse_args(argv)
    return run_command(
        "search",
        lambda: arguments.run(arguments),
        "interrupted; what was done is kept, and the same command goes on from there",
    )


if __name__ == "__main__":
    interrupt_on_sigterm()
    sys.exit(main())
