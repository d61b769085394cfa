"""`python -m reliability`: chaos, soak, fuzz, cost, large pictures; on a TorchServe of its own or yours.

`cost` also on Ray Serve.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipserve.command import run_command
from clipserve.errors import ClipServeError
from clipserve.interrupt import interrupt_on_sigterm
from reliability.attacks import AT_THE_FRONTEND, ATTACKS
from reliability.chaos import run_chaos
from reliability.cost import run_cost
from reliability.faults import FAULTS, READY_SECONDS
from reliability.fuzz import run_fuzz
from reliability.largest import run_largest
from reliability.proxy import ProxiedServer, running_proxy
from reliability.ray_server import ray_server
from reliability.soak import run_soak
from serving.local import ROOT
from serving.server import Server, project_server

# Seconds between two requests of a caller: all are one address to the proxy, which lets 50 a second in.
PROXY_PAUSE = 0.25


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
    attacks = ATTACKS[:: arguments.every]
    if arguments.ray:
        if arguments.running:
            raise ClipServeError("--ray attacks a Ray Serve of its own; leave --running out")
        print(f"starting Ray Serve with {arguments.store} on a free port", flush=True)
        with ray_server(arguments.store) as ray:
            ray.wait_ready(READY_SECONDS)
            return run_cost(ray, (*AT_THE_FRONTEND, *attacks), 60 * arguments.minutes)
    with _deployment(arguments) as server:
        if not arguments.proxy:
            return run_cost(server, attacks, 60 * arguments.minutes)
        with (
            tempfile.TemporaryDirectory(prefix="clipserve-proxy-") as folder,
            running_proxy(server, Path(folder)) as proxy,
        ):
            proxied = ProxiedServer(server, proxy)
            return run_cost(proxied, (*AT_THE_FRONTEND, *attacks), 60 * arguments.minutes, PROXY_PAUSE)


def largest(arguments: argparse.Namespace) -> bool:
    """Sends the largest pictures of every format, many at once, and watches memory."""
    with _deployment(arguments) as server:
        return run_largest(server)


@contextlib.contextmanager
def _deployment(arguments: argparse.Namespace) -> Iterator[Server]:
    if arguments.running:
        yield project_server()
        return
    print(f"starting TorchServe with {arguments.store} on free ports", flush=True)
    with Server.private(arguments.store, READY_SECONDS) as server:
        yield server


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 1 also where not all is as promised, see `run_command`."""
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
    of_cost.add_argument("--every", type=int, default=1, help="3: a third of the attacks, and so on")
    door = of_cost.add_mutually_exclusive_group()
    door.add_argument("--proxy", action="store_true", help="through the nginx of docs/deployment.md")
    door.add_argument("--ray", action="store_true", help="on a Ray Serve of the encoders in the store")
    arguments = parser.parse_args(argv)
    return run_command(
        "reliability", lambda: bool(arguments.run(arguments)), "interrupted; a server of its own was stopped"
    )


if __name__ == "__main__":
    interrupt_on_sigterm()
    sys.exit(main())
