"""The load generator: HTTP requests to one address, closed loop or open loop, from a process of its own.

Closed loop: each client asks again as soon as it is answered. Open loop: requests are due at random moments
of a fixed mean rate (Poisson), whether or not earlier ones have been answered, and their latency counts from
the moment they were due, so that a server that stalls cannot hide it by slowing its callers down.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import numpy as np

from benchmarks.child import Job, Result, answer_jobs

# Where a body has this, each request carries another number: nothing can be remembered from earlier ones.
FRESH = b"@@@@@@@@@@"

# A server that answers in large batches needs a few of them before a rate means something.
ANSWERS_PER_CLIENT = 2
PATIENCE = 4  # times the wanted duration
LEAST_ARRIVALS = 10
TIMEOUT_SECONDS = 120.0
REFUSED_SECONDS = 0.05  # a refused caller does not hammer


@dataclass(frozen=True)
class LoadJob:
    """What to send.

    Attributes:
        url, headers: of every request.
        bodies: files, sent in turns.
        seconds: of the measurement; with 0, each client of a closed loop asks once.
        warm_up: seconds before it, not counted.
        clients: of a closed loop; None for an open loop.
        rate: requests per second of an open loop; None for a closed one.
        seed: of the arrivals.
    """

    url: str
    headers: dict[str, str]
    bodies: list[str]
    seconds: float
    warm_up: float = 0.0
    clients: int | None = None
    rate: float | None = None
    seed: int = 0


@dataclass
class LoadResult:
    """What came of it.

    Attributes:
        rate: answers per second.
        p50_ms, p95_ms, p99_ms: of the latency, in milliseconds.
        requests: how many were counted.
        answered: all answers with status 200, those before and after the measurement too.
        errors: what else came, by status or exception, and how often.
        generator_cores: CPU seconds that this process took per second.
        request_bytes, response_bytes: mean size of the bodies.
    """

    rate: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    requests: int = 0
    answered: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    generator_cores: float = 0.0
    request_bytes: float = 0.0
    response_bytes: float = 0.0


class Connection(asyncio.Protocol):
    """A kept-alive connection with one request under way at most.

    A client library takes ten times the CPU for each request, which would be missing to the server beside it.

    Attributes:
        open: whether another request may be sent.
    """

    def __init__(self) -> None:
        self.open = False
        self._transport: asyncio.Transport
        self._parser: Any = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[tuple[int, int]] | None = None
        self._received = 0

    async def ask(self, request: Sequence[bytes]) -> tuple[int, int]:
        """Sends a request; the answer's status, and the size of its body.

        Raises:
            OSError: the connection ended before the answer did.
        """
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        self._received = 0
        patience = loop.call_later(TIMEOUT_SECONDS, self._transport.abort)
        self._transport.writelines(request)
        try:
            return await self._answer
        finally:
            patience.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed before the answer's end"))

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Called by httptools."""
        self._received += len(body)

    def on_message_complete(self) -> None:
        """Called by httptools."""
        if not self._parser.should_keep_alive():
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), self._received))

    def close(self) -> None:
        """Ends it."""
        self.open = False
        self._transport.close()


class Generator:
    """One job's requests, and what became of them.

    Attributes:
        answers: of each answer, when its latency began to count and when it came; seconds.
        errors: what else came, and how often.
        received: bytes of all answers' bodies.
    """

    def __init__(self, job: LoadJob):
        self._job = job
        self._bodies = [Path(path).read_bytes() for path in job.bodies]
        self._fresh = FRESH in self._bodies[0]
        self._number = time.time_ns() // 1_000_000
        self._sent = 0
        self._idle: list[Connection] = []
        self.answers: list[tuple[float, float]] = []
        self.errors: Counter[str] = Counter()
        self.received = 0
        url = urlsplit(job.url)
        self._host, self._port = url.hostname or "", url.port or 80
        lines = [f"POST {url.path} HTTP/1.1", f"Host: {url.netloc}"]
        lines += [f"{name}: {value}" for name, value in job.headers.items()]
        self._heads = [
            "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() for body in self._bodies
        ]

    @property
    def request_bytes(self) -> float:
        """Mean size of a body."""
        return float(np.mean([len(body) for body in self._bodies]))

    async def ask(self, since: float) -> None:
        """One request, whose latency counts from `since`."""
        which = self._sent % len(self._bodies)
        body = self._bodies[which]
        self._sent += 1
        if self._fresh:
            body = body.replace(FRESH, b"%010d" % ((self._number + self._sent) % 10**10))
        try:
            connection = await self._connection()
            status, size = await connection.ask((self._heads[which], body))
        except OSError as error:
            self.errors[type(error).__name__] += 1
            await asyncio.sleep(REFUSED_SECONDS)
            return
        if connection.open:
            self._idle.append(connection)
        if status != HTTPStatus.OK:
            self.errors[str(status)] += 1
            await asyncio.sleep(REFUSED_SECONDS)
            return
        self.received += size
        self.answers.append((since, time.perf_counter()))

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port)
        return connection

    def close(self) -> None:
        """Ends its connections."""
        for connection in self._idle:
            connection.close()

    async def closed_loop(self, clients: int) -> float:
        """Runs the clients until each has its last answer; when the measurement began."""
        begin = time.perf_counter() + self._job.warm_up
        end = begin + self._job.seconds
        latest = begin + PATIENCE * self._job.seconds
        wanted = ANSWERS_PER_CLIENT * clients

        def finished(now: float) -> bool:
            # Answers come in the order of time: the last of those wanted tells whether there are enough.
            enough = len(self.answers) >= wanted and self.answers[-wanted][1] >= begin
            return now >= end and (enough or now >= latest)

        async def client() -> None:
            while True:
                await self.ask(time.perf_counter())
                if finished(time.perf_counter()):
                    return

        await asyncio.gather(*(client() for _ in range(clients)))
        return begin

    async def open_loop(self, rate: float) -> float:
        """Sends what is due when it is due, waits for all answers; when the measurement began."""
        begin = time.perf_counter()
        tasks = []
        for due in _arrivals(rate, self._job.seconds, self._job.seed):
            await asyncio.sleep(begin + due - time.perf_counter())
            tasks.append(asyncio.create_task(self.ask(begin + due)))
        await asyncio.gather(*tasks)
        return begin


def _arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Moments of a Poisson process, in seconds from its begin; at least a few, however slow it is."""
    rng = np.random.default_rng(seed)
    due, count = rng.exponential(1 / rate), 0
    while due < seconds or count < LEAST_ARRIVALS:
        yield due
        due, count = due + rng.exponential(1 / rate), count + 1


def _rate(moments: Sequence[float]) -> float:
    """Answers per second: the slope of their number over time.

    A count over a window would be off by up to a batch at either end, which is much where a server answers
    32 requests at once.
    """
    return float(np.polyfit(np.array(moments) - moments[0], np.arange(len(moments)), 1)[0])


async def run(job: LoadJob) -> LoadResult:
    """Sends the requests of a job, waits for all their answers, and sums up."""
    start, cpu = time.perf_counter(), time.process_time()
    generator = Generator(job)
    try:
        if job.clients is not None:
            begin = await generator.closed_loop(job.clients)
        else:
            begin = await generator.open_loop(job.rate or 0.0)
    finally:
        generator.close()
    answers = generator.answers
    result = LoadResult(
        answered=len(answers),
        errors=dict(generator.errors),
        generator_cores=(time.process_time() - cpu) / (time.perf_counter() - start),
        request_bytes=generator.request_bytes,
        response_bytes=generator.received / max(1, len(answers)),
    )
    if answers:
        # On a machine so slow that nothing was asked after the warm-up, the warm-up is all there is.
        counted = [(since, done) for since, done in answers if since >= begin] or answers
        quantiles = np.quantile([1000 * (done - since) for since, done in counted], (0.5, 0.95, 0.99))
        result.requests = len(counted)
        result.p50_ms, result.p95_ms, result.p99_ms = (float(q) for q in quantiles)
        moments = [done for _, done in answers if done >= begin]
        if len(set(moments)) > 1:
            result.rate = _rate(moments)
        else:
            result.rate = len(answers) / (answers[-1][1] - answers[0][0])
    return result


def answer(job: Job) -> Result:
    """Runs a `LoadJob` given as JSON."""
    return asdict(asyncio.run(run(LoadJob(**job))))


if __name__ == "__main__":
    sys.exit(answer_jobs(answer))
