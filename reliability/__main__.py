"""`python -m reliability`: chaos, soak, fuzz, cost, large pictures; on a TorchServe of its own or yours."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipserve.errors import ClipServeError
from clipserve.interrupt import interrupt_on_sigterm
from reliability.attacks import ATTACKS
from reliability.chaos import run_chaos
from reliability.cost import run_cost
from reliability.faults import FAULTS, READY_SECONDS
from reliability.fuzz import run_fuzz
from reliability.largest import run_largest
from reliability.soak import run_soak
from serving.local import ROOT
from serving.server import Server, private_server, project_server


def chaos(arguments: argparse.Namespace) -> bool:
    """Hurts the deployment in nine ways under load, and prints what each cost."""
    names = arguments.faults.split(",")
    unknown = sorted(set(names) - set(FAULTS))
    if unknown:
        raise ClipServeError(f"fault {unknown[0]!r} is unknown; allowed are {', '.join(FAULTS)}")
    with _deployment(arguments) as server:
        scores = run_chaos(server, names, arguments.requests)
    kept = sum(not score.complaint for score in scores)
    print(f"{kept} of {len(scores)} as promised")
    return kept == len(scores)


def soak(arguments: argparse.Namespace) -> bool:
    """Asks for minutes on end, 2 % of it bad, and watches memory."""
    with _deployment(arguments) as server:
        return run_soak(server, 60 * arguments.minutes)


def fuzz(arguments: argparse.Namespace) -> bool:
    """Sends damaged requests in between good ones."""
    with _deployment(arguments) as server:
        return run_fuzz(server, arguments.requests, arguments.seed)


def cost(arguments: argparse.Namespace) -> bool:
    """Sends requests that cost as much as they can, four at a time in between good ones."""
    with _deployment(arguments) as server:
        return run_cost(server, ATTACKS, 60 * arguments.minutes)


def largest(arguments: argparse.Namespace) -> bool:
    """Sends the largest pictures of every format, many at once, and watches memory."""
    with _deployment(arguments) as server:
        return run_largest(server)


@contextlib.contextmanager
def _deployment(arguments: argparse.Namespace) -> Iterator[Server]:
    if arguments.running:
        yield project_server()
        return
    with tempfile.TemporaryDirectory(prefix="clipserve-reliability-") as folder:
        server = private_server(arguments.store, Path(folder))
        print(f"starting TorchServe with {arguments.store} on free ports", flush=True)
        try:
            server.start()
            server.wait_ready(READY_SECONDS)
            yield server
        finally:
            server.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 0 as promised, 1 not so or a known error in one line on stderr, 2 usage."""
    parser = argparse.ArgumentParser(prog="python -m reliability", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for run in (chaos, soak, fuzz, cost, largest):
        command = commands.add_parser(run.__name__, help=run.__doc__)
        command.set_defaults(run=run)
        where = command.add_mutually_exclusive_group()
        where.add_argument(
            "--store", type=Path, default=ROOT / "model_store", help="folder of the archives to serve"
        )
        where.add_argument("--running", action="store_true", help="the server that 'make serve' started")
    of_chaos, of_soak, of_fuzz, of_cost = (
        commands.choices[run.__name__] for run in (chaos, soak, fuzz, cost)
    )
    of_chaos.add_argument("--requests", type=int, default=2000, help="innocent requests at each fault")
    of_chaos.add_argument("--faults", default=",".join(FAULTS), help="which, separated by commas")
    of_soak.add_argument("--minutes", type=float, default=30.0)
    of_fuzz.add_argument("--requests", type=int, default=50_000)
    of_fuzz.add_argument("--seed", type=int, default=0)
    of_cost.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args(argv)
    try:
        return 0 if arguments.run(arguments) else 1
    except (ClipServeError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; a server of its own was stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    interrupt_on_sigterm()
    sys.exit(main())
