"""What waits for an endpoint, handed to its replicas several requests at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from clipserve.errors import RequestError
from clipserve.wire.rows import Row
from scale.serve.answer import Answer
from scale.serve.settings import EndpointSettings, ServerSettings


# Told apart by who asked: comparing what they sent, pictures byte by byte, would be work for nothing.
@dataclass(frozen=True, eq=False)
class _Asked:
    row: Row
    answer: asyncio.Future[Answer]


class Dispatcher:
    """One endpoint's queue.

    What a call costs Ray, on both sides of it, is as much as an encoder's work for a text, whatever the call
    carries: so a call takes all that waits, up to a batch. A request that finds a replica free goes at once.

    Args:
        replicas: of the endpoint.
        server: says how many requests may wait, and how many bytes a request may have. No call has more, for
            it is copied on its way: several of the largest go one by one.
    """

    def __init__(self, replicas: DeploymentHandle[Any], settings: EndpointSettings, server: ServerSettings):
        self._replicas = replicas
        self._settings = settings
        self._server = server
        self._waiting: deque[_Asked] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self, row: Row) -> Answer:
        """What a replica answers; whoever cancels this has left, and his request with him.

        Raises:
            RequestError: `overloaded`: the queue is full, there is no answer in time, or the replica ended.
        """
        if len(self._waiting) >= self._server.queue:
            raise RequestError("overloaded", f"{self._server.queue} requests wait already; ask again", 503)
        asked = _Asked(row, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        self._send()
        seconds = self._settings.response_seconds
        try:
            return await asyncio.wait_for(asked.answer, seconds)
        except TimeoutError:
            raise RequestError("overloaded", f"no answer within {seconds:g} s; ask again", 503) from None
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(asked)

    def _send(self) -> None:
        most = self._settings.max_replicas * self._settings.calls
        while self._waiting and len(self._calls) < most:
            batch = self._next_batch()
            call = asyncio.create_task(self._call(batch))
            self._calls.add(call)
            call.add_done_callback(self._ended)
            for asked in batch:
                asked.answer.add_done_callback(partial(_end_unless_awaited, call, batch))

    def _next_batch(self) -> Sequence[_Asked]:
        batch = [self._waiting.popleft()]
        size = batch[0].row.size
        while self._waiting and len(batch) < self._settings.batch_size:
            size += self._waiting[0].row.size
            if size > self._server.max_bytes:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._send()

    async def _call(self, batch: Sequence[_Asked]) -> None:
        try:
            answers: list[Answer] = await self._replicas.answer.remote([asked.row for asked in batch])
        except (RayActorError, DeploymentUnavailableError):
            # An embedding has no side effect. Not repeated here: a request may be what ended the worker.
            error = RequestError("overloaded", "the worker ended before it answered; ask again", 503)
            _fail(batch, error)
        except Exception as error:
            _fail(batch, error)
        else:
            for asked, answer in zip(batch, answers, strict=True):
                if not asked.answer.done():
                    asked.answer.set_result(answer)


def _fail(batch: Sequence[_Asked], error: Exception) -> None:
    for asked in batch:
        if not asked.answer.done():
            asked.answer.set_exception(error)


def _end_unless_awaited(call: asyncio.Task[None], batch: Sequence[_Asked], _: asyncio.Future[Answer]) -> None:
    """What a replica has not begun it need not begin, where all who asked for it have left."""
    if all(asked.answer.done() for asked in batch):
        call.cancel()
