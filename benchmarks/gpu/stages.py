"""Runs stages one after the other, each in a process of its own and within its time; whatever fails is noted.

A stage is a generator of named steps. It runs in a fork of this process, which itself never touches the GPU:
so a stage that breaks the device's state, runs out of its time or dies takes nothing along, and imports are
paid for once. What a step gives is kept as soon as it is there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeAlias

from benchmarks.gpu.plan import Plan
from clipserve.errors import ClipServeError
from clipserve.interrupt import interrupt_on_sigterm

Step: TypeAlias = tuple[str, Callable[[], Any]]
Steps: TypeAlias = Callable[[Plan], Iterator[Step]]
Outcome = Literal["passed", "failed", "skipped"]

# A stage that is told to end stops the servers it has started, which takes TorchServe some seconds.
END_SECONDS = 20.0
REASON_CHARACTERS = 400


class Skipped(Exception):  # noqa: N818  nothing is wrong
    """A step cannot be run here, and need not be."""


class WrongError(ClipServeError):
    """Something is not as it must be."""


class PartlyFailedError(Exception):
    """A step whose parts did not all succeed.

    Args:
        value: of those that did.
        reasons: of the others, by name.
    """

    def __init__(self, value: Any, reasons: Mapping[str, str]):
        super().__init__("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
        self.value = value


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        steps: of it.
        seconds: that it may take.
    """

    name: str
    steps: Steps
    seconds: float


@dataclass
class Noted:
    """What became of one step."""

    stage: str
    step: str
    outcome: Outcome
    seconds: float
    value: Any = None
    reason: str | None = None


@dataclass
class Run:
    """What a run has found so far.

    Attributes:
        changed: called whenever there is more.
        steps: in their order.
        seconds: of each stage that has begun.
    """

    changed: Callable[[Run], None]
    steps: list[Noted] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def note(self, noted: Noted) -> None:
        """Keeps what became of a step."""
        self.steps.append(noted)
        self.changed(self)

    def of(self, outcome: Outcome) -> list[Noted]:
        """The steps that ended so."""
        return [noted for noted in self.steps if noted.outcome == outcome]

    def stage(self, stage: Stage, plan: Plan, left: float) -> None:
        """Runs a stage for at most its time, and at most the `left` seconds of the whole run."""
        begun = time.monotonic()
        allowed = min(stage.seconds, left)
        if allowed <= 0:
            reason = "not begun: the time of the whole run was up"
            self.note(Noted(stage.name, "all of it", "failed", 0.0, reason=reason))
            return
        # Forked: what it needs is imported, and this process has no other thread and no GPU.
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(stage, plan, sender), name=stage.name)
        process.start()
        sender.close()
        ended: str | None = "cut short: the run was interrupted"
        try:
            ended = self._listen(receiver, begun + allowed, allowed)
            if not ended:
                process.join(END_SECONDS)
        finally:
            _end(process)
            self.seconds[stage.name] = time.monotonic() - begun
            if ended is not None:
                if ended == "":
                    ended = f"its process ended with {process.exitcode}"
                self.note(Noted(stage.name, "the rest", "failed", 0.0, reason=ended))

    def _listen(self, receiver: Connection, deadline: float, allowed: float) -> str | None:
        """Notes what a stage tells until it ends: None, or why it did not reach its end."""
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            try:
                told: Noted | None = receiver.recv()
            except EOFError:
                return ""
            if told is None:
                return None
            self.note(told)
        return f"cut short after {allowed:.0f} s"


def _work(stage: Stage, plan: Plan, sender: Connection) -> None:
    """A stage's process."""
    # Of a session of its own: Ctrl-C is for the command, which ends this one with all that it has started.
    os.setsid()
    interrupt_on_sigterm()
    # Told to end: what it has begun it has put away on the way here.
    with contextlib.suppress(KeyboardInterrupt):
        for noted in _all_noted(stage, plan):
            sender.send(noted)
        sender.send(None)


def _all_noted(stage: Stage, plan: Plan) -> Iterator[Noted]:
    steps = stage.steps(plan)
    while True:
        begun = time.monotonic()
        name, step = _next(steps)
        if step is None:
            return
        noted = _noted(stage.name, name, step)
        noted.seconds = time.monotonic() - begun
        yield noted
        if noted.reason is not None and _device_is_lost(noted.reason):
            reason = "left out: after an error of CUDA's a process can do no more"
            yield Noted(stage.name, "the rest", "failed", 0.0, reason=reason)
            return


def _next(steps: Iterator[Step]) -> tuple[str, Callable[[], Any] | None]:
    """The next step; none at the end, and one that raises where the stage itself does."""
    try:
        return next(steps)
    except StopIteration:
        return "", None
    except Exception as error:
        wrong = error

        def fail() -> None:
            raise wrong

        return "what all its steps need", fail


def _noted(stage: str, name: str, step: Callable[[], Any]) -> Noted:
    try:
        return Noted(stage, name, "passed", 0.0, step())
    except Skipped as skipped:
        return Noted(stage, name, "skipped", 0.0, reason=str(skipped))
    except PartlyFailedError as partly:
        return Noted(stage, name, "failed", 0.0, partly.value, str(partly))
    except Exception as error:
        return Noted(stage, name, "failed", 0.0, reason=reason_of(error))


def reason_of(error: BaseException) -> str:
    """One line about an error: of many lines the last, where TorchScript and compilers say what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    if len(lines) > 1 and not isinstance(error, ClipServeError):
        said = f"{lines[0]} … {said}"
    name = "" if isinstance(error, ClipServeError) else f"{type(error).__name__}: "
    return f"{name}{said}"[:REASON_CHARACTERS]


def _device_is_lost(reason: str) -> bool:
    return "CUDA error" in reason and "out of memory" not in reason


def _end(process: Any) -> None:
    """Ends a stage's process with all that it has started."""
    if process.is_alive():
        process.terminate()
        process.join(END_SECONDS)
    # Whatever it left of its session: decoding processes, a server whose stage was killed.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join(END_SECONDS)
