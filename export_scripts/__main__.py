"""`python -m export_scripts export …`: from a checkpoint to archives; what the Makefile calls."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from clipserve.arguments import Parser
from clipserve.command import run_command

# Command -> the module of its `main`.
COMMANDS = {
    "export": "export_scripts.export",
    "verify": "export_scripts.verify",
    "tune": "export_scripts.tune",
    "archive": "export_scripts.packages.archive",
    "triton": "export_scripts.packages.triton",
    "known-answers": "export_scripts.known_answers",
    "models": "export_scripts.models",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = Parser(prog="python -m export_scripts", description=__doc__)
    parser.add_argument("command", choices=COMMANDS, help="'COMMAND --help' shows its options")
    words = sys.argv[1:] if argv is None else argv
    command: str = parser.parse_args(words[:1]).command
    # PyTorch and transformers take seconds: whoever interrupts that is told in one line, as later.
    status = run_command(command, lambda: _import(command))
    return status or int(sys.modules[COMMANDS[command]].main(words[1:]))


def _import(command: str) -> None:
    import_module(COMMANDS[command])


if __name__ == "__main__":
    sys.exit(main())
