"""`make gpu-proof`: exports for a GPU, proves, refuses and measures in one command; DRY=1 the same on a CPU.

Writes `gpu.json` after every step and `gpu.png` at the end. Whatever fails is reported with its reason, the
rest goes on, and the exit status is 1.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from benchmarks.child import OFFLINE
from benchmarks.gpu import card, model, proofs, report, served, use
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.stages import Noted, Run, Stage
from clipserve.arguments import Parser, path
from clipserve.command import run_command
from clipserve.errors import SettingsError
from clipserve.interrupt import interrupt_on_sigterm

OUTPUT = Path(".bench") / "gpu"

# What every stage may take; together they take about two thirds of it.
STAGES = (
    Stage("card", card.card, 40),
    Stage("checkpoints", proofs.checkpoints, 90),
    Stage("export", proofs.export, 180),
    Stage("parity", proofs.parity, 90),
    Stage("answers", served.answers, 90),
    Stage("refusals", served.refusals, 30),
    Stage("full GPU", served.full_gpu, 40),
    Stage("images alone", model.of("image"), 110),
    Stage("texts alone", model.of("text"), 110),
    Stage("end to end", use.end_to_end, 90),
    Stage("latency", use.latency, 50),
    Stage("memory", use.memory, 30),
    Stage("TorchServe", served.by_torchserve, 110),
)
TOTAL_SECONDS = 560.0


def prove(output: Path, *, dry: bool) -> bool:
    """Runs all stages, and writes what they found: whether none failed.

    Raises:
        SettingsError: there is no GPU, and it is no dry run.
        OSError: the folder cannot be written.
    """
    if not dry and not _has_gpu():
        raise SettingsError(
            f"PyTorch {torch.__version__} sees no CUDA device here; 'make gpu-proof DRY=1' runs the same on "
            "a CPU with tiny encoders, docs/gpu.md says what a machine with a GPU needs"
        )
    output.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    told = 0

    def changed(run: Run) -> None:
        nonlocal told
        report.write(report.results(run, dry=dry, seconds=time.monotonic() - begun), output)
        for noted in run.steps[told:]:
            print(report.line(noted), flush=True)
        told = len(run.steps)

    run = Run(changed)
    # That it cannot be written is known now, not in ten minutes.
    changed(run)
    with tempfile.TemporaryDirectory(prefix="clipserve-gpu-") as work:
        plan = Plan(dry, Path(work))
        for stage in STAGES:
            run.stage(stage, plan, TOTAL_SECONDS - (time.monotonic() - begun))
    drawn = time.monotonic()
    try:
        report.draw(report.results(run, dry=dry, seconds=drawn - begun), output)
    except Exception as error:  # the figures are kept, whatever a drawing wants
        run.note(Noted("picture", report.PICTURE, "failed", time.monotonic() - drawn, reason=repr(error)))
    changed(run)
    print(report.summary(run, output))
    return not run.of("failed")


def _has_gpu() -> bool:
    """Asked in a fork: a process that has asked can fork no stage that uses the GPU."""
    process = multiprocessing.get_context("fork").Process(target=_ask_for_gpu)
    process.start()
    process.join()
    return process.exitcode == 0


def _ask_for_gpu() -> None:
    sys.exit(0 if torch.cuda.is_available() else 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = Parser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--dry", action="store_true", help="on a CPU with tiny encoders: no figure means anything"
    )
    parser.add_argument("--output", type=path, default=OUTPUT, help=f"folder of the report ({OUTPUT})")
    arguments = parser.parse_args(argv)
    os.environ |= OFFLINE
    # What a worker warns of is about limits that nobody here meets.
    logging.getLogger("clipserve").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return run_command(
        "gpu-proof",
        lambda: prove(arguments.output, dry=arguments.dry),
        "interrupted; what was found so far is in gpu.json",
    )


if __name__ == "__main__":
    interrupt_on_sigterm()
    sys.exit(main())
