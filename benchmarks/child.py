"""Measuring programs as child processes: a job in as a line of JSON, its result out as a line of JSON.

What is measured, and what loads the machine, never shares an interpreter with the command that compares.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import psutil

from clipserve.errors import ClipServeError

Job = Mapping[str, Any]
Result = dict[str, Any]

# Libraries that would rather ask a model hub, or report their use.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}


class PeerError(ClipServeError):
    """What should be measured does not run here; the message becomes its line in the table."""


def say(line: str) -> None:
    """Tells the user what is going on."""
    print(line, file=sys.stderr, flush=True)


class Child:
    """A child process that answers jobs, until it is closed.

    Args:
        module: of this project, run as `python -m`; its `main` calls `answer_jobs`.
        threads: of one operation in torch, None leaves it to the child.
        more: of its environment.
        python: that runs it; None is this one.

    Raises:
        PeerError: from `ask`, when the child has ended instead of answering.
    """

    def __init__(
        self,
        module: str,
        threads: int | None = None,
        more: Mapping[str, str] | None = None,
        python: str | None = None,
    ):
        environment = {**os.environ, **OFFLINE, **(more or {})}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        self._module = module
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by close()
        self._process = subprocess.Popen(
            [python or sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        self.process = psutil.Process(self._process.pid)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, job: Job) -> None:
        """Hands over a job; `receive` waits for its result."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` says why
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()

    def receive(self) -> Result:
        """The result of the job that was sent last.

        Raises:
            PeerError: the child has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines() or [f"status {self._process.wait()}"]
            raise PeerError(f"{self._module} ended: {said[-1]}")
        result: Result = json.loads(line)
        return result

    def ask(self, job: Job) -> Result:
        """Hands over a job and waits for its result.

        Raises:
            PeerError: the child has ended.
        """
        self.send(job)
        return self.receive()

    def suspend(self) -> None:
        """Stops it where it is: threads that wait for work by spinning would take cores from the others."""
        with contextlib.suppress(psutil.Error):
            self.process.suspend()

    def resume(self) -> None:
        """Has it go on."""
        with contextlib.suppress(psutil.Error):
            self.process.resume()

    def close(self) -> None:
        """Ends the child."""
        self.resume()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def ask_together(children: Sequence[Child], job: Job) -> list[Result]:
    """The same job for several children at once."""
    for child in children:
        child.send(job)
    return [child.receive() for child in children]


def answer_jobs(answer: Callable[[Job], Result]) -> int:
    """The child's side: answers a job a line until standard input ends.

    Every result has `cpu_s` too: the CPU seconds that it took.
    """
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    # Whatever a library prints goes where errors go.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        before = time.process_time()
        result = answer(json.loads(line))
        result["cpu_s"] = time.process_time() - before
        print(json.dumps(result), file=results, flush=True)
    return 0
