"""The guard in front of somebody else's server: it looks, and that server answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from safevlm.engine import Engine
from safevlm.serve.conversation import OpenedRequest
from safevlm.serve.errors import ApiError, busy
from safevlm.serve.guarded import GuardedModel
from safevlm.serve.looking import LetThrough
from safevlm.serve.output_guard import AnswerVerdict, JudgedReply, judged
from safevlm.serve.progress import InProgress
from safevlm.serve.server_events import ServerEvent
from safevlm.serve.upstream import Upstream, too_slow
from safevlm.serve.upstream_body import upstream_body
from safevlm.serve.upstream_words import UpstreamWords
from safevlm.serve.wire.front import FrontBody
from safevlm.types import Generation, Reply, Request
from safevlm.usage import UsageError

INSTEAD = "name one that looks at images, such as safety-head, and have answers judged by --output-guard self-check"


@dataclass
class Front(GuardedModel):
    """A guard whose model is at an upstream. Its engine needs no LLM."""

    upstream: Upstream = field(kw_only=True)
    upstream_model: str = field(kw_only=True)

    def __post_init__(self) -> None:
        check_engine(self.engine)
        super().__post_init__()
        self.in_flight = 0

    def judges_first(self, body: FrontBody) -> bool:
        """Whether nothing of the answer is sent before it was judged."""
        guard = self.output_guard
        return guard is not None and guard.mode_of(body.asks("output")) == "block"

    async def passing(self, body: FrontBody, question: OpenedRequest) -> AsyncGenerator[Reply | ServerEvent]:
        """First the decision, `LetThrough` or a refusal; then what the upstream answers, piece by piece, and in front
        of the last one a `JudgedReply` where the request wants its answer scored.

        ApiError: the guard is busy or gives no verdict in time, or whatever is wrong with the upstream.
        """
        async with self._begun(body, question) as (progress, decided, events):
            yield decided
            heard = UpstreamWords()
            async for event in events:
                self._overhear(heard, event)
                if event.is_last:
                    scored = await self._scored(self._overheard(heard, decided), progress, body.asks("output"))
                    if isinstance(scored, JudgedReply):
                        yield scored
                yield event

    async def said(self, body: FrontBody, question: OpenedRequest) -> AsyncGenerator[str | Reply]:
        """As `answer`, of the upstream's model: its words, for whoever writes the answer anew.

        Only words get out, and where `judges_first` none that was not judged. ApiError: as `passing`, and an answer
        that holds something else.
        """
        async with self._begun(body, question) as (progress, decided, events):
            if not isinstance(decided, LetThrough):
                yield decided
                return
            words = _UpstreamAnswer(events, decided, body.stream)
            pieces = words.pieces()
            async with aclosing(pieces), aclosing(self._judged_first(body, question, words, pieces)) as let_out:
                async for heard in let_out:
                    if isinstance(heard, Reply):
                        heard = await self._scored(heard, progress, body.asks("output"))
                    yield heard

    def _judged_first(
        self, body: FrontBody, question: OpenedRequest, words: _UpstreamAnswer, pieces: AsyncGenerator[str | Reply]
    ) -> AsyncGenerator[str | Reply]:
        guard = self.output_guard
        if guard is None or not self.judges_first(body):
            return pieces
        return guard.held_back(question.request, pieces, words.stop)

    def _overhear(self, heard: UpstreamWords, event: ServerEvent) -> None:
        """What is passed on is passed on, readable or not."""
        if self.output_guard is None or heard.is_unreadable:
            return
        try:
            heard.hear(event)
        except ApiError:
            heard.is_unreadable = True

    def _overheard(self, heard: UpstreamWords, decided: Reply) -> Reply:
        reply = Reply(heard.all_words(), decided.request, decided.verdict, trace=decided.trace)
        if self.output_guard is None or not heard.is_unreadable:
            return reply
        return judged(reply, AnswerVerdict(self.output_guard.name, error="unreadable"))

    @asynccontextmanager
    async def _begun(
        self, body: FrontBody, question: OpenedRequest
    ) -> AsyncIterator[tuple[InProgress, Reply, AsyncGenerator[ServerEvent]]]:
        """A request that was decided about, and the upstream's answer to it: none where it was refused."""
        if self.in_flight >= self.limits.waiting:
            self.metrics.requests.labels("busy").inc()
            raise busy()
        blocks = body.asks("input") == "block"
        progress = self.begin(question, blocks=blocks)
        deadline = asyncio.get_running_loop().time() + self.limits.seconds
        self.in_flight += 1
        try:
            with progress.settling():
                decided = await self._decided(progress, question)
                if not isinstance(decided, LetThrough):
                    progress.settle("refused", decided)
                async with aclosing(self._answered(body, question, decided, deadline)) as events:
                    yield progress, decided, events
        finally:
            self.in_flight -= 1

    async def _answered(
        self, body: FrontBody, question: OpenedRequest, decided: Reply, deadline: float
    ) -> AsyncGenerator[ServerEvent]:
        if not isinstance(decided, LetThrough):
            return
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
        """ApiError: the model is not here; what goes to the upstream is a body, as `said` takes it."""
        raise ApiError(404, "the model is at another server", code="not_available")
        yield ""

    async def aclose(self) -> None:
        await super().aclose()
        await self.upstream.close()


def check_engine(engine: Engine) -> None:
    """UsageError: a defense that cannot stand in front of another server."""
    defense = engine.defense
    troubles = {
        "asks the model again, which it cannot do": defense.reviews,
        "changes the model's tensors, which it cannot do": defense.transforms,
        "never looks at a request, which it must do": not defense.detects,
    }
    trouble = next((told for told, is_so in troubles.items() if is_so), "")
    if trouble:
        raise UsageError(f"--defense {defense.name} {trouble} in front of another server; {INSTEAD}")


def check_trial(engine: Engine) -> None:
    """UsageError: a defense that cannot decide about a blank image; it would refuse whatever comes."""
    (decided,) = engine.decide_all([Request("What is it?", (Image.new("RGB", (64, 64), "white"),))])
    if error := decided.verdict.error:
        raise UsageError(f"--defense {engine.defense.name} fails in front of another server ({error}); {INSTEAD}")


class _UpstreamAnswer:
    """An upstream's answer as pieces of words and a reply."""

    def __init__(self, events: AsyncGenerator[ServerEvent], decided: Reply, is_streamed: bool) -> None:
        self._events = events
        self._decided = decided
        self._is_streamed = is_streamed
        self._is_stopped = False

    def stop(self) -> None:
        """Nobody will read the rest; what was heard so far is the reply."""
        self._is_stopped = True

    async def pieces(self) -> AsyncGenerator[str | Reply]:
        """ApiError 502: an answer that is not words alone."""
        heard = UpstreamWords()
        async for event in self._events:
            words = heard.hear(event)
            if words and self._is_streamed:
                yield words
            if self._is_stopped:
                break
        yield heard.reply(self._decided)
