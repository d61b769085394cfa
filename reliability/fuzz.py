"""Damaged requests by the thousand against a real server, innocent callers among them all the while."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx

from reliability.corpus import BadRequest, bad_request
from reliability.load import Load, send_once
from reliability.questions import Question, learn_questions
from reliability.watch import MemoryWatch
from serving.server import Server

CALLERS = 8
RSS_BOUND = 300.0  # megabytes over idle


def run_fuzz(server: Server, requests: int, seed: int) -> bool:
    """Sends `requests` damaged requests; prints what came back.

    Innocent callers ask at the same time, so that damaged and good requests share batches; every second
    damaged request is sent in the same moment as a good one of the same endpoint, whose answer is checked.

    Returns:
        Whether nothing but 200 and 4xx came, no innocent request failed, no vector was wrong, no worker was
        lost and no worker grew by more than `RSS_BOUND`.
    """
    with server.client() as client:
        questions = learn_questions(client, server.endpoints)
    statuses: Counter[str] = Counter()
    worst: list[str] = []
    companions: Counter[str] = Counter()
    numbers = itertools.count()
    lock = threading.Lock()
    by_endpoint = {e: [q for q in questions if q.endpoint == e] for e in server.endpoints}

    def call(caller: int) -> None:
        choose = random.Random(caller)
        with httpx.Client(timeout=120, trust_env=False) as http, ThreadPoolExecutor(1) as beside:
            while (number := next(numbers)) < requests:
                bad = bad_request(number, seed)
                question = choose.choice(by_endpoint[bad.endpoint])
                companion = beside.submit(_ask, http, server, question) if number % 2 else None
                response = send_once(http, server, bad.endpoint, bad.body, bad.content_type)
                problem = _problem(bad, response, int(server.properties["max_request_size"]))
                outcome = companion.result() if companion is not None else "none"
                with lock:
                    statuses[str(response.status_code)] += 1
                    companions[outcome] += 1
                    if problem and len(worst) < 20:
                        worst.append(f"request {number} ({bad.kind}): {problem}")
                    if number % 5000 == 4999:
                        print(f"{number + 1} requests, {dict(statuses)}", flush=True)

    started = time.monotonic()
    with MemoryWatch(server) as watch, Load(server, questions, plain=2, retrying=0) as load:
        with ThreadPoolExecutor(CALLERS) as pool:
            for future in [pool.submit(call, i) for i in range(CALLERS)]:
                future.result()
        totals = load.totals()
        lost = watch.lost()
        peaks = watch.peaks()
    innocent = sum(totals.values()) + companions.total() - companions["none"]
    failed = totals["plain", "failed"] + companions["failed"]
    wrong = totals["plain", "wrong"] + companions["wrong"]
    print(
        f"{requests} damaged requests in {time.monotonic() - started:.0f} s: {dict(sorted(statuses.items()))}"
    )
    print(f"innocent requests beside them: {innocent}, failed {failed}, wrong vectors {wrong}")
    print(f"workers lost: {lost or 'none'}")
    print("most memory over idle, MB: " + ", ".join(f"{k} {v:.0f}" for k, v in sorted(peaks.items())))
    for line in worst:
        print(line)
    within = max(peaks.values()) <= RSS_BOUND
    return not (worst or failed or wrong or lost) and within


def _ask(http: httpx.Client, server: Server, question: Question) -> str:
    response = send_once(http, server, question.endpoint, question.body, question.content_type)
    if response.status_code != httpx.codes.OK:
        return "failed"
    return "right" if question.holds(response.content) else "wrong"


def _problem(bad: BadRequest, response: httpx.Response, most_bytes: int) -> str:
    """What is wrong with the answer to a damaged request; empty: nothing.

    Args:
        most_bytes: of a body. Larger ones are TorchServe's frontend's to refuse, which has no JSON for them.
    """
    if response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE and len(bad.body) > most_bytes:
        return ""
    if response.status_code == httpx.codes.OK:
        try:
            body = json.loads(response.content)
        except ValueError:
            return "status 200 with a body that is not JSON"
        return "" if body.get("object") in ("list", "similarity") else f"status 200 with {response.text[:80]}"
    if 400 <= response.status_code < 500:
        try:
            error = json.loads(response.content).get("error", {})
        except ValueError:
            return f"status {response.status_code} with a body that is not JSON"
        return "" if error.get("code") and error.get("message") else f"no error in {response.text[:80]}"
    return f"status {response.status_code}: {response.text[:120]}"
