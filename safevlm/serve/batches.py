"""A bounded queue in front of one model: requests that wait together are answered, or looked at, together.

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
from typing import Protocol

from safevlm.engine import BatchRequest
from safevlm.engine.growing import key
from safevlm.serve.errors import busy, stuck
from safevlm.types import Generation, Reply, Request, Verdict

log = logging.getLogger(__name__)

Outcome = Reply | Verdict
Heard = str | Outcome | Exception


class Answerer(Protocol):
    """An engine, or whatever else settles a batch of requests."""

    def reply_each(self, asked: Sequence[BatchRequest], stop: Event | None = None) -> Sequence[Reply]: ...

    def look(self, request: Request) -> Verdict: ...


class Waiting:
    """A request in the queue, and what is heard of it: pieces of its answer, then a reply, a verdict or an error."""

    def __init__(self, engine: Answerer, request: Request, generation: Generation | None, is_streamed: bool) -> None:
        """`generation`: how it is answered; None: it is looked at, and the outcome is a verdict."""
        self.engine = engine
        self.looks_only = generation is None
        self.asked = BatchRequest(request, generation or Generation(), self._hear if is_streamed else self._stays)
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

    async def heard(self, seconds: float) -> AsyncIterator[str | Outcome]:
        """Pieces, and last the outcome. Raises what went wrong; leaves when the reader goes.

        TimeoutError: `seconds` from now no outcome was heard. The clock hangs on each wait and not on the task, since
        the first piece and the others are read by different tasks.
        """
        deadline = self._loop.time() + seconds
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    heard = await self._heard.get()
                if isinstance(heard, Exception):
                    raise heard
                yield heard
                if isinstance(heard, Outcome):
                    return
        finally:
            self.leave()

    def settle(self, outcome: Outcome | Exception) -> None:
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

    def __init__(self, most: int, waiting: int, seconds: float) -> None:
        """`most` requests are answered together, `waiting` may wait; a batch must end in `seconds`."""
        self.most = most
        self.most_waiting = waiting
        self.most_seconds = seconds
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

    @property
    def is_stuck(self) -> bool:
        """Whether the batch in progress has taken longer than a request may wait."""
        since = self.busy_since
        return since is not None and time.monotonic() - since > self.most_seconds

    def put(self, waiting: Waiting, is_first: bool = False) -> None:
        """`is_first`: in front of all others and beyond the bound, for what ends a request that was let in already.

        ApiError 429: the queue is full. ApiError 503: what is in progress does not end.
        """
        if self.is_stuck or not self.is_alive:
            raise stuck(self.most_seconds)
        with self._changed:
            if is_first and not self._closing:
                self._queue.appendleft(waiting)
                self._changed.notify()
                return
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
            outcomes = _outcomes(batch, self._stop)
        except BaseException as error:  # noqa: BLE001 - whatever it is, its requests must hear of it, and the thread lives on
            if len(batch) == 1:
                if not isinstance(error, ValueError):
                    log.error("a request failed: %s", error, exc_info=error)
                batch[0].settle(_heard(error))
                return
            for each in batch:  # one of them cannot be used, and the others do not pay for it
                if each.has_begun:  # nothing that was said is said twice
                    each.settle(_heard(error))
                else:
                    self._answer([each])
            return
        for each, outcome in zip(batch, outcomes, strict=True):
            each.settle(outcome)


def _outcomes(batch: Sequence[Waiting], stop: Event) -> Sequence[Outcome]:
    engine = batch[0].engine
    if batch[0].looks_only:
        return [engine.look(each.asked.request) for each in batch]
    return engine.reply_each([each.asked for each in batch], stop)


def _heard(error: BaseException) -> Exception:
    """`SystemExit` of a detector ends its request, not the server."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__} in the model's thread")


def _shares(one: Waiting, other: Waiting) -> bool:
    if one is other:
        return True
    if one.looks_only or other.looks_only:
        return one.engine == other.engine and one.looks_only == other.looks_only
    how, others = one.asked.generation, other.asked.generation
    is_greedy = how.temperature == others.temperature == 0
    return one.engine == other.engine and is_greedy and key(how) == key(others)
