"""A guarded model behind a server: every face of it asks here, and what breaks on the way is no answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from safevlm.engine import Engine
from safevlm.serve.acting import Blocking
from safevlm.serve.batches import Batches, Waiting
from safevlm.serve.conversation import OpenedRequest
from safevlm.serve.errors import ApiError
from safevlm.serve.fetching import Fetcher
from safevlm.serve.flat_images import ImageOpener
from safevlm.serve.limits import Limits
from safevlm.serve.metrics import Metrics
from safevlm.types import Generation, Reply, Verdict

log = logging.getLogger(__name__)


@dataclass
class Health:
    """Whether the guard works. It is red from a failure to the next success."""

    trouble: str = ""

    def note(self, verdict: Verdict) -> None:
        self.trouble = "the last detector that ran failed" if verdict.error else ""


@dataclass
class GuardedModel:
    """One engine, its queue, and what is counted."""

    engine: Engine
    name: str
    """By which clients ask for it."""
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    health: Health = field(default_factory=Health)
    fetcher: Fetcher | None = None
    """Of images on the network; none: they are refused."""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.batches = Batches(self.limits.batch, self.limits.waiting, self.limits.seconds)
        self.metrics.watch_waiting(lambda: self.batches.waiting)
        self.images = ImageOpener(self.engine.processor.image_processor, self.limits, self.fetcher)
        self._blocking = self.engine.behind(Blocking(self.engine.defense, self.engine.taxonomy))

    @property
    def most_tokens(self) -> int:
        """An answer can have; the engine cuts it where the model's positions end."""
        return self.engine.positions

    def trouble(self) -> str:
        """Why the server is not well; empty: it is."""
        if not self.batches.is_alive:
            return "the model's thread has ended"
        if self.batches.is_stuck:
            return "a batch has not ended in time"
        return self.health.trouble

    async def answer(
        self, question: OpenedRequest, generation: Generation, *, is_streamed: bool = False, blocks: bool = False
    ) -> AsyncGenerator[str | Reply]:
        """Pieces where it is streamed, and last the reply. `blocks`: whatever is flagged is refused.

        ApiError: the queue is full, the request cannot be used, or no answer came in time.
        """
        started = time.perf_counter()
        engine = self._blocking if blocks else self.engine
        waiting = Waiting(engine, question.request, generation, is_streamed)
        self.metrics.images.inc(len(question.images))
        action = "failed"
        try:
            with self._told():
                self.batches.put(waiting)
                async for heard in waiting.heard(self.limits.seconds):
                    if isinstance(heard, Reply):
                        self._count(heard)
                        action = "refused" if heard.refused_by else "hinted" if _is_hinted(heard) else "passed"
                    if not isinstance(heard, Verdict):
                        yield heard
        except ApiError as error:
            action = {429: "busy", 400: "unusable"}.get(error.status, action)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            action = "left" if action == "failed" else action  # who has the reply reads no further
            raise
        finally:
            waiting.leave()
            self.metrics.requests.labels(action).inc()
            self.metrics.seconds.observe(time.perf_counter() - started)

    async def look(self, question: OpenedRequest) -> Verdict:
        """The verdict alone. ApiError: the queue is full, the request cannot be used, or no verdict came in time."""
        started = time.perf_counter()
        waiting = Waiting(self.engine, question.request, None, is_streamed=False)
        self.metrics.images.inc(len(question.images))
        action = "failed"
        try:
            with self._told():
                self.batches.put(waiting)
                async for verdict in waiting.heard(self.limits.seconds):
                    if isinstance(verdict, Verdict):
                        self.metrics.guard_seconds.observe(time.perf_counter() - started)
                        self._count_verdict(verdict, bool(question.images))
                        action = "looked"
                        return verdict
            raise AssertionError("a look ends in a verdict or an error")
        finally:
            waiting.leave()
            self.metrics.requests.labels(action).inc()

    @contextmanager
    def _told(self) -> Generator[None]:
        """What goes wrong while the model is asked, as an ApiError; it is counted, and turns health red."""
        try:
            yield
        except ApiError as error:
            if error.status == 503:
                self.metrics.guard_errors.labels("stuck").inc()
                log.error("a request was refused, since a batch does not end or the model's thread has")
            raise
        except TimeoutError as error:
            self.metrics.guard_errors.labels("timeout").inc()
            self.health.trouble = "the last request was not answered in time"
            log.error("a request was not answered within %g seconds", self.limits.seconds)
            raise ApiError(504, "no answer in time, so nothing was let through", code="timeout") from error
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_request") from error
        except Exception as error:
            self.metrics.guard_errors.labels("model").inc()
            self.health.trouble = "the last request failed"
            raise ApiError(500, "the request failed; the cause is in the server's log") from error

    def _count(self, reply: Reply) -> None:
        self._count_verdict(reply.verdict, bool(reply.request.images))
        self.metrics.tokens.labels("read").inc(reply.prompt_tokens)
        self.metrics.tokens.labels("written").inc(reply.answer_tokens)

    def _count_verdict(self, verdict: Verdict, has_images: bool) -> None:
        self.health.note(verdict)
        if verdict.error:
            self.metrics.guard_errors.labels("detector").inc()
        elif verdict.looked:
            source = "image" if has_images else "text"
            self.metrics.verdicts.labels(verdict.source, verdict.category, verdict.level, source).inc()

    def close(self, seconds: float = 10.0) -> None:
        """Finishes what is in progress."""
        self.batches.close(seconds)

    async def aclose(self) -> None:
        """`close`, while others go on."""
        await asyncio.to_thread(self.close)

    def card(self) -> dict[str, Any]:
        """Of `/v1/models`."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "safevlm"}


def _is_hinted(reply: Reply) -> bool:
    return any(line.startswith("added to the question") for line in reply.trace)
