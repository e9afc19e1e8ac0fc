"""A bounded queue in front of one model: requests that wait together are answered together.

One thread works at the model. A request that nobody waits for any more is dropped from the queue, or its answer ends
at the next token.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from threading import Condition, Event, Thread

from safevlm.engine import BatchRequest, Engine
from safevlm.engine.growing import key
from safevlm.serve.errors import busy
from safevlm.types import Generation, Reply, Request

log = logging.getLogger(__name__)

Heard = str | Reply | BaseException


class Waiting:
    """A request in the queue, and what is heard of its answer: pieces, then the reply or an error."""

    def __init__(self, engine: Engine, request: Request, generation: Generation, is_streamed: bool) -> None:
        self.engine = engine
        self.asked = BatchRequest(request, generation, self._hear if is_streamed else self._stays)
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()
        self._left = Event()
        self.has_begun = False
        """Whether a piece of the answer was heard."""

    @property
    def has_left(self) -> bool:
        return self._left.is_set()

    def leave(self) -> None:
        """Nobody waits any more."""
        self._left.set()

    async def heard(self) -> AsyncIterator[str | Reply]:
        """Pieces, and last the reply. Raises what went wrong; leaves when the reader goes."""
        try:
            while True:
                heard = await self._heard.get()
                if isinstance(heard, BaseException):
                    raise heard
                yield heard
                if isinstance(heard, Reply):
                    return
        finally:
            self.leave()

    def settle(self, outcome: Reply | BaseException) -> None:
        """From the model's thread: the end."""
        self._tell(outcome)

    def _hear(self, piece: str) -> bool:
        self.has_begun = True
        self._tell(piece)
        return not self.has_left

    def _stays(self, piece: str) -> bool:
        return not self.has_left

    def _tell(self, heard: Heard) -> None:
        try:
            self._loop.call_soon_threadsafe(self._heard.put_nowait, heard)
        except RuntimeError:  # the loop is closed: the server stops
            self.leave()


class Batches:
    """The queue and its thread."""

    def __init__(self, most: int, waiting: int) -> None:
        """`most` requests are answered together, `waiting` may wait."""
        self.most = most
        self.most_waiting = waiting
        self.busy_since: float | None = None
        """When the batch in progress began, by `time.monotonic`; None: nothing is in progress."""
        self._queue: deque[Waiting] = deque()
        self._changed = Condition()
        self._closing = False
        self._stop = Event()
        self._thread = Thread(target=self._work, name="safevlm-batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def busy_seconds(self) -> float:
        """How long the batch in progress has taken so far."""
        since = self.busy_since
        return 0.0 if since is None else time.monotonic() - since

    def put(self, waiting: Waiting) -> None:
        """ApiError 429: the queue is full."""
        with self._changed:
            if len(self._queue) >= self.most_waiting:
                self._queue = deque(each for each in self._queue if not each.has_left)
            if len(self._queue) >= self.most_waiting or self._closing:
                raise busy()
            self._queue.append(waiting)
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Takes no more, finishes what is in progress for so long, then ends it at the next token."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        self._stop.set()
        self._thread.join(seconds)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            self.busy_since = time.monotonic()
            try:
                self._answer(batch)
            finally:
                self.busy_since = None

    def _next(self) -> list[Waiting] | None:
        """The oldest request, and those behind it that can share its batch; None: the end."""
        with self._changed:
            while True:
                self._queue = deque(each for each in self._queue if not each.has_left)
                if self._queue:
                    break
                if self._closing:
                    return None
                self._changed.wait()
            first = self._queue[0]
            batch = [each for each in self._queue if _shares(each, first)][: self.most]
            taken = set(map(id, batch))
            self._queue = deque(each for each in self._queue if id(each) not in taken)
            return batch

    def _answer(self, batch: Sequence[Waiting]) -> None:
        try:
            replies = batch[0].engine.reply_each([each.asked for each in batch], self._stop)
        except Exception as error:  # noqa: BLE001 - whatever it is, its requests must hear of it
            if len(batch) == 1:
                if not isinstance(error, ValueError):
                    log.error("a request failed: %s", error, exc_info=error)
                batch[0].settle(error)
                return
            for each in batch:  # one of them cannot be used, and the others do not pay for it
                if each.has_begun:  # nothing that was said is said twice
                    each.settle(error)
                else:
                    self._answer([each])
            return
        for each, reply in zip(batch, replies, strict=True):
            each.settle(reply)


def _shares(one: Waiting, other: Waiting) -> bool:
    if one is other:
        return True
    how, others = one.asked.generation, other.asked.generation
    is_greedy = how.temperature == others.temperature == 0
    return one.engine is other.engine and is_greedy and key(how) == key(others)
