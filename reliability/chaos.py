"""Hurts a deployment under load, one fault after the other, and prints what each cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clipserve.errors import ServerError
from reliability.faults import FAULTS, READY_SECONDS, Fault, Harm
from reliability.load import Load
from reliability.questions import Question, learn_questions
from serving.server import Server


@dataclass(frozen=True)
class Score:
    """What one fault cost.

    Attributes:
        asked: requests of innocent callers from the fault until well after it.
        failed: of those who ask once: not answered.
        lost: of those who use our client, which retries: not answered.
        wrong: answered with a wrong vector.
        back_after: seconds until every endpoint answered again.
        remark: of the fault itself.
        reasons: why requests failed, and how many.
        complaint: what was not as promised; empty: all was.
    """

    fault: Fault
    asked: int
    failed: int
    lost: int
    wrong: int
    back_after: float
    remark: str
    reasons: Counter[str]
    complaint: str


def run_chaos(server: Server, names: Sequence[str], requests: int) -> list[Score]:
    """Does each fault to a running server.

    Args:
        names: of `FAULTS`.
        requests: how many innocent requests each fault is watched over, at least.

    Raises:
        ServerError: the server is not ready to begin with.
    """
    server.wait_ready(READY_SECONDS)
    with server.client() as client:
        questions = learn_questions(client, server.endpoints)
    scores = []
    _print_head()
    with Load(server, questions) as load:
        for name in names:
            score = _score(FAULTS[name], server, questions, load, requests)
            _print_score(score)
            scores.append(score)
    return scores


def _score(fault: Fault, server: Server, questions: Sequence[Question], load: Load, requests: int) -> Score:
    began = time.monotonic()
    _wait(lambda: load.answered_by_all(began) is not None, "callers are not answered before the fault")
    hurt = time.monotonic()
    complaint = ""
    harm = Harm(hurt)
    try:
        harm = fault.run(server, questions)
    except ServerError as error:
        complaint = str(error)
    try:
        _wait(lambda: load.answered_by_all(harm.moment) is not None, "not every endpoint came back")
        server.wait_ready(READY_SECONDS)
        _wait(lambda: len(load.events(hurt)) >= requests, f"fewer than {requests} requests were answered")
    except ServerError as error:
        complaint = complaint or str(error)
    back = load.answered_by_all(harm.moment)
    events = load.events(hurt)
    counts = Counter((event.caller, event.outcome) for event in events)
    lost = counts["retrying", "failed"]
    wrong = counts["plain", "wrong"] + counts["retrying", "wrong"]
    back_after = float("inf") if back is None else back - harm.moment
    if not complaint and wrong:
        complaint = f"{wrong} wrong vectors"
    if not complaint and lost and not fault.refuses:
        complaint = f"{lost} requests lost although the client retries"
    if not complaint and fault.back_within is not None and back_after > fault.back_within:
        complaint = f"back after {back_after:.1f} s, promised are {fault.back_within:g} s"
    reasons = Counter(event.reason for event in events if event.outcome == "failed")
    return Score(
        fault,
        len(events),
        counts["plain", "failed"],
        lost,
        wrong,
        back_after,
        harm.remark,
        reasons,
        complaint,
    )


def _wait(done: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + 2 * READY_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise ServerError(f"{complaint} within {2 * READY_SECONDS:g} s")
        time.sleep(0.05)


def _print_head() -> None:
    print(f"{'fault':30} {'asked':>6} {'failed':>6} {'lost':>5} {'wrong':>5} {'back':>7}  remark")
    print("  failed: callers that ask once; lost: callers that use our client; back: every endpoint answers")


def _print_score(score: Score) -> None:
    verdict = score.complaint and f"NOT AS PROMISED: {score.complaint}"
    print(
        f"{score.fault.title:30} {score.asked:6} {score.failed:6} {score.lost:5} {score.wrong:5} "
        f"{score.back_after:6.1f}s  {'; '.join(filter(None, (score.remark, verdict)))}",
        flush=True,
    )
    for reason, count in score.reasons.most_common(3):
        print(f"{'':32}{count} x {reason[:100]}")
