"""Hours of ordinary work with a little bad input in it: does memory grow, does an answer ever change?"""

from __future__ import annotations

import math
import time
from collections import Counter

import httpx

from reliability.corpus import bad_request
from reliability.load import Load, send_once
from reliability.questions import learn_questions
from reliability.watch import MemoryWatch
from serving.server import Server

BAD_SHARE = 0.02
PAUSE = 0.02  # seconds between an answer and the caller's next request: a busy service, not a drowning one
# A slope counts as growth where it is both this many standard errors from 0 and this large, in MB per hour.
ERRORS = 3.0
NOISE = 20.0


def run_soak(server: Server, seconds: float) -> bool:
    """Asks for `seconds` and prints what came back and how memory moved.

    Returns:
        Whether every answer was as expected, no worker was lost and none grew beyond noise.
    """
    with server.client() as client:
        questions = learn_questions(client, server.endpoints)
    bad: Counter[str] = Counter()
    started = reported = time.monotonic()
    with MemoryWatch(server, 1.0) as watch, Load(server, questions, plain=4, retrying=2, pause=PAUSE) as load:
        with httpx.Client(timeout=120, trust_env=False) as http:
            while True:
                now = time.monotonic()
                if now - started >= seconds:
                    break
                if now - reported >= 60:
                    reported = now
                    print(f"{now - started:5.0f} s: {dict(load.totals())}, bad {dict(bad)}", flush=True)
                # As many bad ones as keep their share of what was asked so far.
                if bad.total() >= BAD_SHARE * sum(load.totals().values()):
                    time.sleep(0.05)
                    continue
                wrong = bad_request(bad.total(), seed=1)
                status = send_once(http, server, wrong.endpoint, wrong.body, wrong.content_type).status_code
                bad[
                    "expected" if status == httpx.codes.OK or 400 <= status < 500 else f"status {status}"
                ] += 1
        totals, lost = load.totals(), watch.lost()
    slopes = watch.slopes(after=min(120.0, seconds / 4))
    unexpected = sum(count for (_, outcome), count in totals.items() if outcome != "right")
    unexpected += bad.total() - bad["expected"]
    asked = sum(totals.values()) + bad.total()
    print(
        f"{asked} requests in {seconds:.0f} s, {100 * bad.total() / asked:.1f} % of them bad; "
        f"unexpected answers: {unexpected}"
    )
    print(f"workers lost: {lost or 'none'}")
    for name, (slope, error) in sorted(slopes.items()):
        measured = (
            f"{slope:+.1f} ± {error:.1f} MB per hour" if math.isfinite(error) else "too short a run to tell"
        )
        print(f"{name}: memory {measured}")
    grows = [name for name, (slope, error) in slopes.items() if slope > max(NOISE, ERRORS * error)]
    return not (unexpected or lost or grows)
