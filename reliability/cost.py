"""Requests that cost as much as they can, four at a time, innocent callers among them all the while."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil

from clipserve.client import Management
from clipserve.errors import ServerError
from reliability.attacks import Attack
from reliability.fuzz import RSS_BOUND
from reliability.load import AnyServer, Load, send_once
from reliability.questions import learn_questions
from reliability.watch import MEGABYTE, MemoryWatch

CPU_BOUND = 10.0  # seconds of a worker that one request may cost
GROWTH_BOUND = 100.0  # megabytes, from the second quarter of the time to the last
WARM_SECONDS = 120.0  # of a quarter; until then Java's memory grows into what it may have
AT_ONCE = 4
BACK_SECONDS = 30.0  # in which memory has to come back


def run_cost(server: AnyServer, attacks: Sequence[Attack], seconds: float, pause: float = 0.05) -> bool:
    """Sends each attack alone, then four at a time among eight innocent callers; prints what came of it.

    Args:
        attacks: what is sent.
        seconds: how long, at least, attacks and callers go on together; every attack is sent once.
        pause: of a caller between an answer and the next request, seconds.

    Returns:
        Whether each attack alone cost a worker no more than `CPU_BOUND`, each was answered, no innocent
        request failed, no vector was wrong, no worker was lost, and memory came back and did not grow.
    """
    with server.client() as client:
        questions = learn_questions(client, server.endpoints)
        management = Management(client)
        workers = {e: psutil.Process(management.workers(e)[0].pid) for e in server.endpoints}
    complaints: list[str] = []
    with MemoryWatch(server, frontend=True) as watch, httpx.Client(timeout=120, trust_env=False) as http:
        frontends = server.frontends()
        costs = []
        idle = _megabytes(workers)
        for attack in attacks:
            before = _cpu_seconds(workers[attack.endpoint])
            before_it = sum(map(_cpu_seconds, frontends.values()))
            sent = time.monotonic()
            answer, complaint = _send(http, server, attack)
            spent = _cpu_seconds(workers[attack.endpoint]) - before
            if not spent <= CPU_BOUND:
                complaint = complaint or f"{spent:.1f} s of CPU, allowed are {CPU_BOUND:g}"
            if complaint:
                complaints.append(f"{attack.name}: {complaint}")
            took = time.monotonic() - sent
            of_frontend = sum(map(_cpu_seconds, frontends.values())) - before_it
            costs.append((spent, of_frontend))
            print(
                f"{attack.name:40} {spent:5.1f} s CPU, {of_frontend:4.1f} s of the frontend's, "
                f"{took:5.1f} s in all: {answer}",
                flush=True,
            )
        for whose, seconds_of in zip(("a worker's", "the frontend's"), zip(*costs, strict=True), strict=True):
            print(
                f"an attack alone, {whose} CPU, s: median {statistics.median(seconds_of):.2f}, "
                f"most {max(seconds_of):.1f}"
            )
        print(f"back to idle +{_most_over(workers, idle):.0f} MB after each alone")
        answers: Counter[str] = Counter()
        numbers = itertools.count()
        lock = threading.Lock()
        began = time.monotonic()

        def attack_on(_: int) -> None:
            with httpx.Client(timeout=120, trust_env=False) as own:
                while (number := next(numbers)) < len(attacks) or time.monotonic() - began < seconds:
                    attack = attacks[number % len(attacks)]
                    answer, complaint = _send(own, server, attack)
                    with lock:
                        answers[answer.partition(" ")[0]] += 1
                        if complaint:
                            complaints.append(f"{attack.name}, among callers: {complaint}")

        with Load(server, questions, plain=4, retrying=4, pause=pause) as load:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(attack_on, range(AT_ONCE)))
            totals = load.totals()
        ended = time.monotonic()
        floors = watch.floors(began, ended)
        lost = watch.lost()
        while _most_over(workers, idle) > RSS_BOUND and time.monotonic() - ended < BACK_SECONDS:
            # What a worker's own look at its memory waits for.
            for question in questions:
                send_once(http, server, question.endpoint, question.body, question.content_type)
            time.sleep(0.5)
        back = _most_over(workers, idle)
        peaks = watch.peaks()
    failed = totals["plain", "failed"] + totals["retrying", "failed"]
    wrong = totals["plain", "wrong"] + totals["retrying", "wrong"]
    came = dict(sorted(answers.items()))
    print(f"{answers.total()} attacks, {AT_ONCE} at once, in {ended - began:.0f} s: {came}")
    print(f"innocent requests beside them: {sum(totals.values())}, failed {failed}, wrong vectors {wrong}")
    print(f"workers lost: {lost or 'none'}")
    print("most memory over idle, MB: " + ", ".join(f"{k} {v:.0f}" for k, v in sorted(peaks.items())))
    print("least memory over idle, MB, in each quarter of the time:")
    for name, least in sorted(floors.items()):
        print(f"  {name:16} " + " ".join(f"{megabytes:+5.0f}" for megabytes in least))
    print(f"afterwards: idle +{back:.0f} MB, promised are {RSS_BOUND:g}")
    for line in complaints[:20]:
        print(line)
    warm = (ended - began) / 4 >= WARM_SECONDS
    grows = [
        name
        for name, (_, second, _, last) in floors.items()
        if last - second > GROWTH_BOUND and (warm or name in workers)
    ]
    return not (complaints or failed or wrong or lost or grows or back > RSS_BOUND)


def _send(http: httpx.Client, server: AnyServer, attack: Attack) -> tuple[str, str]:
    """What came back, and what is wrong with that; empty: nothing."""
    try:
        response = send_once(http, server, attack.endpoint, attack.make(), attack.content_type)
    except (httpx.HTTPError, ServerError) as error:
        return type(error).__name__, f"{type(error).__name__}: {error}"
    try:
        body = json.loads(response.content)
    except ValueError:
        body = {}
    code = body.get("error", {}).get("code", "")
    errors = Counter(
        entry["error"]["code"]
        for entry in (*body.get("data", ()), *body.get("errors", ()))
        if "error" in entry
    )
    said = ", ".join(f"{count} x {name}" for name, count in errors.items())
    refused = 400 <= response.status_code < 500 or (response.status_code, code) == (503, "overloaded")
    complaint = "" if response.status_code == httpx.codes.OK or refused else f"{response.status_code} {code}"
    return f"{response.status_code} {code}{said}", complaint


def _cpu_seconds(worker: psutil.Process) -> float:
    """Seconds that a worker has run; not a number where it has ended."""
    try:
        times = worker.cpu_times()
    except psutil.NoSuchProcess:
        return math.nan
    return float(times.user + times.system)


def _megabytes(workers: Mapping[str, psutil.Process]) -> dict[str, float]:
    return {name: w.memory_info().rss / MEGABYTE for name, w in workers.items() if w.is_running()}


def _most_over(workers: Mapping[str, psutil.Process], idle: Mapping[str, float]) -> float:
    return max((now - idle[name] for name, now in _megabytes(workers).items()), default=0.0)
