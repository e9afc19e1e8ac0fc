"""The guard in front of somebody else's server: it looks, and that server answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from safevlm.engine import Engine
from safevlm.serve.conversation import OpenedRequest
from safevlm.serve.errors import ApiError, busy
from safevlm.serve.guarded import GuardedModel
from safevlm.serve.looking import LetThrough
from safevlm.serve.server_events import ServerEvent
from safevlm.serve.upstream import Upstream, too_slow
from safevlm.serve.upstream_body import upstream_body
from safevlm.serve.wire.front import FrontBody
from safevlm.types import Generation, Reply


@dataclass
class Front(GuardedModel):
    """A guard whose model is at an upstream. Its engine needs no LLM."""

    upstream: Upstream = field(kw_only=True)
    upstream_model: str = field(kw_only=True)

    def __post_init__(self) -> None:
        check_engine(self.engine)
        super().__post_init__()
        self.in_flight = 0

    async def passing(self, body: FrontBody, question: OpenedRequest) -> AsyncGenerator[Reply | ServerEvent]:
        """First the decision, `LetThrough` or a refusal; then what the upstream answers, piece by piece.

        ApiError: the guard is busy or gives no verdict in time, or whatever is wrong with the upstream.
        """
        if self.in_flight >= self.limits.waiting:
            self.metrics.requests.labels("busy").inc()
            raise busy()
        blocks = body.moderation is not None and body.moderation.mode("input") == "block"
        progress = self.begin(question, blocks=blocks)
        deadline = asyncio.get_running_loop().time() + self.limits.seconds
        self.in_flight += 1
        try:
            with progress.settling():
                reply = progress.decided = await self._decided(progress, question)
                if not isinstance(reply, LetThrough):
                    progress.settle("refused", reply)
                    yield reply
                    return
                yield reply
                async with aclosing(self._answered(body, question, reply, deadline)) as pieces:
                    async for piece in pieces:
                        if piece.is_last:
                            progress.settle(progress.action_of(reply), reply)
                        yield piece
        finally:
            self.in_flight -= 1

    async def _answered(
        self, body: FrontBody, question: OpenedRequest, decided: LetThrough, deadline: float
    ) -> AsyncGenerator[ServerEvent]:
        processor = self.engine.processor
        try:
            sent = await asyncio.to_thread(
                upstream_body, body, question, decided.rewritten, self.upstream_model, processor
            )
        except ValueError as error:
            self.metrics.guard_errors.labels("rewrite").inc()
            raise ApiError(500, f"{error}, so nothing was let through", code="not_available") from error
        started = time.perf_counter()
        try:
            if not body.stream:
                async with asyncio.timeout_at(deadline):
                    raw, told = await self.upstream.complete(sent)
                yield ServerEvent(raw, told, is_last=True)
                return
            async with aclosing(self.upstream.stream(sent)) as events:
                is_last = False
                while not is_last:  # the deadline hangs on each wait: the events are read by several tasks
                    async with asyncio.timeout_at(deadline):
                        event = await anext(events)
                    is_last = event.is_last
                    yield event
        except TimeoutError as error:
            self.metrics.guard_errors.labels("upstream").inc()
            raise too_slow() from error
        except ApiError as error:
            if error.status >= 500:
                self.metrics.guard_errors.labels("upstream").inc()
            raise
        finally:
            self.metrics.upstream_seconds.observe(time.perf_counter() - started)

    async def answer(
        self, question: OpenedRequest, generation: Generation, **options: Any
    ) -> AsyncGenerator[str | Reply]:
        """ApiError: the model is not here, and what goes to the upstream is a chat completion's body alone."""
        raise ApiError(404, "in front of another server there are /v1/chat/completions alone", code="not_available")
        yield ""

    async def aclose(self) -> None:
        await super().aclose()
        await self.upstream.close()


def check_engine(engine: Engine) -> None:
    """ValueError: a defense that cannot stand in front of another server."""
    name = engine.defense.name
    if not engine.defense.detects:
        raise ValueError(f"defense {name} never looks at a request; in front of another server name one that does")
    if engine.defense.transforms or engine.defense.reviews:
        what = "changes the model's tensors" if engine.defense.transforms else "asks the model again"
        raise ValueError(f"defense {name} {what}, which it cannot do in front of another server; name another one")
