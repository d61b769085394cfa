"""Innocent callers: they ask what has a known answer, all the time, and write down what they got."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol

import httpx
import psutil

from clipserve.client import Client, KeyFile
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import ClipServeError
from reliability.questions import Question

Caller = Literal["plain", "retrying"]
Outcome = Literal["right", "wrong", "failed"]


class AnyServer(Protocol):
    """What callers need of a server: a `serving.server.Server`, or Ray Serve."""

    @property
    def properties(self) -> Mapping[str, str]:
        """Its addresses, among others."""

    @property
    def endpoints(self) -> Sequence[str]:
        """The names that it serves."""

    @property
    def key_file(self) -> KeyFile:
        """Its tokens."""

    def client(self) -> Client:
        """A client of it."""

    def frontends(self) -> dict[str, psutil.Process]:
        """The processes that requests pass on their way to a worker."""


@dataclass(frozen=True)
class Event:
    """One request of an innocent caller.

    Attributes:
        caller: `plain`, who asks once, or `retrying`, who is a `clipserve.client.Client`.
        endpoint: whom it asked.
        started, ended: `time.monotonic()`.
        outcome: the right vector, a wrong one, or none.
        reason: why there was none.
    """

    caller: Caller
    endpoint: str
    started: float
    ended: float
    outcome: Outcome
    reason: str = ""


class Load:
    """Threads of innocent callers against a server, running between `__enter__` and `__exit__`.

    Args:
        plain: callers that ask once and take what they get.
        retrying: callers that use our client, which retries.
        pause: seconds between an answer and the caller's next request.
    """

    def __init__(
        self,
        server: AnyServer,
        questions: Sequence[Question],
        *,
        plain: int = 3,
        retrying: int = 3,
        pause: float = 0.0,
    ):
        self._server = server
        self._questions = questions
        self._pause = pause
        self._finished = threading.Event()
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._totals: Counter[tuple[str, str]] = Counter()
        self._threads = [
            threading.Thread(target=target, args=(number,), daemon=True)
            for number, target in enumerate([self._ask_plainly] * plain + [self._ask_retrying] * retrying)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finished.set()
        for thread in self._threads:
            thread.join()

    def events(self, since: float) -> list[Event]:
        """What ended after `since`."""
        with self._lock:
            return [event for event in self._events if event.ended > since]

    def answered_by_all(self, since: float) -> float | None:
        """When the last endpoint first gave a right answer to a request sent after `since`; None: not yet."""
        firsts: dict[str, float] = {}
        for event in self.events(since):
            if event.started > since and event.outcome == "right":
                firsts[event.endpoint] = min(event.ended, firsts.get(event.endpoint, event.ended))
        return max(firsts.values()) if set(firsts) == {q.endpoint for q in self._questions} else None

    def totals(self) -> Counter[tuple[str, str]]:
        """How often each kind of caller had each outcome so far."""
        with self._lock:
            return self._totals.copy()

    def _note(self, event: Event) -> None:
        with self._lock:
            self._events.append(event)
            self._totals[event.caller, event.outcome] += 1
        if event.outcome == "failed":
            time.sleep(0.05)  # a refused caller does not hammer
        if self._pause:
            time.sleep(self._pause)

    def _ask_plainly(self, number: int) -> None:
        with httpx.Client(timeout=120.0, trust_env=False) as http:
            self._ask(
                "plain",
                number,
                lambda asked: send_once(http, self._server, asked.endpoint, asked.body, asked.content_type),
            )

    def _ask_retrying(self, number: int) -> None:
        with self._server.client() as client:
            self._ask(
                "retrying",
                number,
                lambda asked: client.post(asked.endpoint, asked.body, asked.content_type),
            )

    def _ask(self, caller: Caller, number: int, send: Callable[[Question], httpx.Response]) -> None:
        choose = random.Random(number)
        while not self._finished.is_set():
            question = choose.choice(self._questions)
            started = time.monotonic()
            outcome: Outcome = "failed"
            reason = ""
            try:
                response = send(question)
                if response.status_code == httpx.codes.OK:
                    outcome = "right" if question.holds(response.content) else "wrong"
                else:
                    reason = f"status {response.status_code}"
            except httpx.HTTPError as error:
                reason = type(error).__name__
            except ClipServeError as error:
                reason = str(error)
            self._note(Event(caller, question.endpoint, started, time.monotonic(), outcome, reason))


def send_once(
    http: httpx.Client, server: AnyServer, endpoint: str, body: bytes, content_type: str
) -> httpx.Response:
    """One request without retries, which would hide what is looked for.

    Raises:
        httpx.HTTPError: no answer.
        ServerError: there is no token.
    """
    token = server.key_file.token("inference")
    return http.post(
        f"{server.properties['inference_address']}/predictions/{ENDPOINTS[endpoint].path}",
        content=body,
        headers={"Content-Type": content_type, "Authorization": f"Bearer {token}"},
    )
