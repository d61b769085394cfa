"""The queue of an endpoint, with replicas that answer when they are told to."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

if importlib.util.find_spec("python_multipart") is None:
    pytest.skip("needs .venv-scale: make test-scale", allow_module_level=True)

from ray.exceptions import RayActorError

from clipserve.errors import RequestError
from clipserve.wire.rows import JSON, Reply, Row
from scale.serve.answer import Answer
from scale.serve.dispatcher import Dispatcher
from scale.serve.settings import EndpointSettings, ServerSettings, read_endpoints
from serving.local import ROOT
from tests.scale.serve.test_serve_parts import NO_ENCODERS

CALLS = 2  # that a replica of a fixed number holds


class Replicas:
    """In the place of Ray's handle.

    Attributes:
        calls: what each call carried.
        cancelled: how many calls were.
    """

    def __init__(self) -> None:
        self.calls: list[list[bytes]] = []
        self.cancelled = 0
        self._answers: list[asyncio.Future[list[Answer]]] = []

    @property
    def answer(self) -> Replicas:
        return self

    async def remote(self, rows: list[Row]) -> list[Answer]:
        self.calls.append([row.body for row in rows])
        self._answers.append(asyncio.get_running_loop().create_future())
        try:
            return await self._answers[-1]
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def finish(self, call: int) -> None:
        """Answers a call, each row with its own body."""
        self._answers[call].set_result([Answer(Reply(200, body, JSON), "") for body in self.calls[call]])

    def fail(self, call: int, error: Exception) -> None:
        self._answers[call].set_exception(error)


Case = Callable[[Dispatcher, Replicas], Awaitable[None]]


def run(case: Case, *, queue: int = 100, max_bytes: int = 1000, **changed: Any) -> None:
    settings: EndpointSettings = next(
        e for e in read_endpoints(ROOT / "handlers", NO_ENCODERS, "cpu") if e.name == "clip_text"
    )

    async def within() -> None:
        replicas = Replicas()
        server = ServerSettings(queue, max_bytes)
        dispatcher = Dispatcher(replicas, replace(settings, **changed), server)  # type: ignore[arg-type]
        await asyncio.wait_for(case(dispatcher, replicas), 20)

    asyncio.run(within())


async def ask(dispatcher: Dispatcher, *names: int) -> list[asyncio.Task[Answer]]:
    asked = [asyncio.create_task(dispatcher.ask(Row(b"%d" % name, JSON))) for name in names]
    await settled()
    return asked


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def bodies(answers: list[Answer]) -> list[bytes]:
    return [bytes(answer.reply.body) for answer in answers]


def test_what_waits_goes_together_and_each_gets_its_own_answer() -> None:
    async def case(dispatcher: Dispatcher, replicas: Replicas) -> None:
        asked = await ask(dispatcher, *range(9))
        # Who finds a replica free does not wait for company.
        assert replicas.calls == [[b"0"], [b"1"]]
        replicas.finish(1)
        await settled()
        assert replicas.calls[CALLS:] == [[b"2", b"3", b"4", b"5"]]
        replicas.finish(0)
        await settled()
        assert replicas.calls[CALLS + 1 :] == [[b"6", b"7", b"8"]]
        replicas.finish(3)
        replicas.finish(2)
        assert bodies(await asyncio.gather(*asked)) == [b"%d" % name for name in range(9)]

    run(case, batch_size=4)


def test_no_call_has_more_bytes_than_a_request_may_have() -> None:
    async def case(dispatcher: Dispatcher, replicas: Replicas) -> None:
        asked = await ask(dispatcher, 0, 1, 2, 33333, 4, 555555, 6, 7)
        for call in range(5):
            replicas.finish(call)
            await settled()
        assert replicas.calls[CALLS:] == [[b"2", b"33333"], [b"4"], [b"555555"], [b"6", b"7"]]
        replicas.finish(5)
        await asyncio.gather(*asked)

    run(case, max_bytes=6)


def test_each_replica_is_kept_busy() -> None:
    async def case(dispatcher: Dispatcher, replicas: Replicas) -> None:
        asked = await ask(dispatcher, *range(20))
        assert len(replicas.calls) == 3 * CALLS
        while len(replicas.calls) < 3 * CALLS + 2 or not all(task.done() for task in asked):
            for call, of in enumerate(list(replicas.calls)):
                if of and not replicas._answers[call].done():
                    replicas.finish(call)
            await settled()
        assert bodies([task.result() for task in asked]) == [b"%d" % name for name in range(20)]

    run(case, min_replicas=3, max_replicas=3, batch_size=8)


def test_where_replicas_come_and_go_ray_sees_each_request() -> None:
    """It counts calls to tell whether there should be one more."""

    async def case(dispatcher: Dispatcher, replicas: Replicas) -> None:
        asked = await ask(dispatcher, *range(40))
        assert [len(of) for of in replicas.calls] == [1] * (2 * 2 * 8)
        for call in range(len(replicas.calls)):
            replicas.finish(call)
        await settled()
        assert [len(of) for of in replicas.calls[32:]] == [8]
        replicas.finish(32)
        await asyncio.gather(*asked)

    run(case, min_replicas=1, max_replicas=2, batch_size=8)


def test_more_than_may_wait_is_refused_at_once() -> None:
    async def case(dispatcher: Dispatcher, replicas: Replicas) -> None:
        asked = await ask(dispatcher, *range(CALLS + 3))
        with pytest.raises(RequestError, match="3 requests wait already; ask again") as told:
            await dispatcher.ask(Row(b"x", JSON))
        assert (told.value.code, told.value.status) == ("overloaded", 503)
        replicas.finish(0)
        await settled()
        # There is room again.
        asked += await ask(dispatcher, 9)
        replicas.finish(1)
        await settled()
        replicas.finish(2)
        await settled()
        replicas.finish(3)
        assert len(await asyncio.gather(*asked)) == CALLS + 4

    run(case, queue=3)


def test_who_left_before_his_turn_is_not_sent_and_makes_room() -> None:
    async def case(dispatcher: Dispatcher, replicas: Replicas) -> None:
        asked = await ask(dispatcher, *range(CALLS + 2))
        asked[2].cancel()
        await settled()
        asked += await ask(dispatcher, 7)
        replicas.finish(0)
        await settled()
        assert replicas.calls[CALLS:] == [[b"3", b"7"]]
        replicas.finish(1)
        replicas.finish(2)
        left, *stayed = asked[2], asked[0], asked[1], *asked[3:]
        assert bodies(await asyncio.gather(*stayed)) == [b"0", b"1", b"3", b"7"]
        assert left.cancelled()

    run(case, queue=2)


def test_a_call_is_ended_when_the_last_who_waits_for_it_has_left() -> None:
    async def case(dispatcher: Dispatcher, replicas: Replicas) -> None:
        first = await ask(dispatcher, 0, 1, 2, 3)
        replicas.finish(0)
        await settled()
        assert replicas.calls[CALLS:] == [[b"2", b"3"]]
        first[2].cancel()
        await settled()
        assert replicas.cancelled == 0
        first[3].cancel()
        await settled()
        assert replicas.cancelled == 1
        # Its place is free.
        await ask(dispatcher, 4)
        assert replicas.calls[CALLS + 1 :] == [[b"4"]]

    run(case)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RayActorError(), (503, "overloaded", "the worker ended before it answered; ask again")),
        (RequestError("x", "y", 418), (418, "x", "y")),
    ],
    ids=["ended", "another"],
)
def test_a_call_that_fails_fails_those_in_it_alone(error: Exception, told: tuple[int, str, str]) -> None:
    async def case(dispatcher: Dispatcher, replicas: Replicas) -> None:
        asked = await ask(dispatcher, 0, 1, 2, 3)
        replicas.finish(0)
        await settled()
        replicas.fail(2, error)
        for task in asked[2:]:
            with pytest.raises(RequestError) as found:
                await task
            assert (found.value.status, found.value.code, found.value.message) == told
        replicas.finish(1)
        assert bodies(await asyncio.gather(*asked[:2])) == [b"0", b"1"]
        # The place of a call that failed is free too.
        (after,) = await ask(dispatcher, 5)
        replicas.finish(3)
        assert bodies([await after]) == [b"5"]

    run(case)


def test_who_gets_no_answer_in_time_is_told_so() -> None:
    async def case(dispatcher: Dispatcher, replicas: Replicas) -> None:
        with pytest.raises(RequestError, match=r"no answer within 0\.05 s; ask again") as told:
            await dispatcher.ask(Row(b"0", JSON))
        assert (told.value.code, told.value.status) == ("overloaded", 503)
        await settled()
        assert replicas.cancelled == 1

    run(case, response_seconds=0.05)
