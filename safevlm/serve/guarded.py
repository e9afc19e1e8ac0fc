"""A guarded model behind a server: every face of it asks here, and what breaks on the way is no answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from safevlm.engine import Engine
from safevlm.serve.batches import Batches, Waiting
from safevlm.serve.conversation import OpenedRequest
from safevlm.serve.deployment import Deployment, Treatment, plain
from safevlm.serve.errors import ApiError
from safevlm.serve.fetching import Fetcher
from safevlm.serve.flat_images import ImageOpener
from safevlm.serve.limits import Limits
from safevlm.serve.looking import Looking
from safevlm.serve.metrics import Metrics
from safevlm.serve.output_guard import AnswerVerdict, JudgedReply, OutputGuard, judged
from safevlm.serve.progress import InProgress
from safevlm.serve.settlement import Keeper
from safevlm.serve.wire.base import Mode
from safevlm.taxonomy import CLEAN, SAFE
from safevlm.types import Generation, Reply, Request, Verdict

log = logging.getLogger(__name__)


@dataclass
class Health:
    """Whether the guard works. It is red from a failure to the next success."""

    trouble: str = ""
    output: str = ""
    """Why the guard of answers gave no judgement; empty from its next judgement on."""
    configuration: str = ""
    """What is wrong with a file of the deployer's that changed; the server goes on with what it read before."""

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
        self.deployment: Deployment = plain(self.engine, self.metrics.guard_seconds.observe)
        """Replaced as a whole when the deployer's files are read again."""
        self.keepers: list[Keeper] = []
        """Are told what became of each request."""
        self.output_guard: OutputGuard | None = None
        """Judges answers; None: nobody does."""
        self._scoring: set[asyncio.Task[None]] = set()

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
        return self.health.trouble or self.health.output

    def begin(self, question: OpenedRequest, *, blocks: bool = False, treatment: Treatment | None = None) -> InProgress:
        """A request under the deployment that is in force. `blocks`: whatever is flagged is refused. `treatment`: in
        place of the one that the deployment has for it."""
        return InProgress(self.deployment, self.metrics, self.keepers, question, blocks=blocks, treatment=treatment)

    async def answer(
        self,
        question: OpenedRequest,
        generation: Generation,
        *,
        is_streamed: bool = False,
        blocks: bool = False,
        output: Mode | None = None,
        treatment: Treatment | None = None,
    ) -> AsyncGenerator[str | Reply]:
        """Pieces where it is streamed, and last the reply. `blocks`, `treatment`: as in `begin`. `output`: what
        the request wants done about its answer; the reply is then a `JudgedReply`.

        ApiError: the queue is full, the request cannot be used, or no answer came in time.
        """
        progress = self.begin(question, blocks=blocks, treatment=treatment)
        waiting = Waiting(progress.engine, question.request, generation, is_streamed)
        try:
            with progress.settling(), self._told():
                self.batches.put(waiting)
                async for heard in self._let_out(waiting, output):
                    if isinstance(heard, Reply):
                        self._count(heard)
                        heard = await self._scored(heard, progress, output)
                    if not isinstance(heard, Verdict):
                        yield heard
        finally:
            waiting.leave()

    def _let_out(self, waiting: Waiting, output: Mode | None) -> AsyncIterator[str | Reply | Verdict]:
        heard, guard = waiting.heard(self.limits.seconds), self.output_guard
        if guard is None or guard.mode_of(output) != "block":
            return heard
        return guard.held_back(waiting.asked.request, heard, waiting.leave)

    async def _scored(self, reply: Reply, progress: InProgress, output: Mode | None) -> Reply:
        """Settles a request whose answer is there. Where its answer is scored and nobody asked for that, later."""
        guard = self.output_guard
        if guard is None or reply.refused_by or isinstance(reply, JudgedReply):
            self._settle(reply, progress)
            return reply
        if output is None:
            progress.is_scored = True
            task = asyncio.create_task(self._score(guard, reply, progress))
            self._scoring.add(task)
            task.add_done_callback(self._scoring.discard)
            return reply
        scored = judged(reply, await guard.verdict(reply.request, reply.text))
        self._settle(scored, progress)
        return scored

    async def _score(self, guard: OutputGuard, reply: Reply, progress: InProgress) -> None:
        try:
            self._settle(judged(reply, await guard.verdict(reply.request, reply.text)), progress)
        finally:  # the server stops
            progress.settle(progress.action_of(reply), reply)

    def _settle(self, reply: Reply, progress: InProgress) -> None:
        progress.settle(progress.action_of(reply), reply)
        if isinstance(reply, JudgedReply):
            self._count_output(reply.output)

    def _count_output(self, found: AnswerVerdict) -> None:
        self.health.output = "the guard of answers gave no judgement" if found.error else ""
        if found.error:
            self.metrics.guard_errors.labels("output").inc()
            return
        category = next((name for name, is_flagged in found.categories.items() if is_flagged), CLEAN)
        self.metrics.verdicts.labels(found.source, category, "flagged" if found.flagged else SAFE, "output").inc()

    async def look(self, question: OpenedRequest) -> Verdict:
        """The verdict alone. ApiError: the queue is full, the request cannot be used, or no verdict came in time."""
        progress = self.begin(question)
        waiting = Waiting(progress.engine, question.request, None, is_streamed=False)
        try:
            with self._told():
                self.batches.put(waiting)
                async for verdict in waiting.heard(self.limits.seconds):
                    if isinstance(verdict, Verdict):
                        self._count_verdict(verdict, bool(question.images))
                        progress.settle("looked", verdict=verdict)
                        return verdict
            raise AssertionError("a look ends in a verdict or an error")
        finally:
            waiting.leave()
            progress.settle("failed")

    async def look_at_each(self, question: OpenedRequest, treatment: Treatment | None = None) -> list[Verdict]:
        """What the guard says of each image alone, beside the question's own words: for people to see. Nothing is
        decided by it, and it counts as no request. ApiError: as `look`."""
        engine = (treatment or self.deployment.treatment()).acting
        asked = [Request(question.request.text, (image.image,), question.request.id) for image in question.images]
        looks = [Waiting(engine, each, None, is_streamed=False) for each in asked]
        verdicts = []
        try:
            with self._told():
                for look in looks:
                    self.batches.put(look)
                for look in looks:
                    verdicts += [heard async for heard in look.heard(self.limits.seconds) if isinstance(heard, Verdict)]
            return verdicts
        finally:
            for look in looks:
                look.leave()

    async def decide(self, question: OpenedRequest) -> Reply:
        """What is made of a request for a model that is somewhere else: `LetThrough`, or the refusal in its place.

        ApiError: the queue is full, the request cannot be used, or no verdict came in time.
        """
        progress = self.begin(question)
        with progress.settling():
            reply = await self._decided(progress, question)
            progress.settle(progress.action_of(reply), reply)
            return reply

    async def _decided(self, progress: InProgress, question: OpenedRequest) -> Reply:
        waiting = Waiting(Looking(progress.engine), question.request, Generation(), is_streamed=False)
        try:
            with self._told():
                self.batches.put(waiting)
                async for reply in waiting.heard(self.limits.seconds):
                    if isinstance(reply, Reply):
                        self._count_verdict(reply.verdict, bool(question.images))
                        progress.decided = reply
                        return reply
        finally:
            waiting.leave()
        raise AssertionError("a look ends in a decision or an error")

    async def judge(self, question: OpenedRequest, text: str) -> JudgedReply:
        """What the guard of answers makes of an answer that a model somewhere else gave, or the refusal in its place.

        Where answers are scored, they are counted and let through.
        """
        guard = self.output_guard
        assert guard is not None
        progress = self.begin(question)
        try:
            reply = Reply(text, question.request, Verdict())
            found = await guard.verdict(question.request, text)
            is_refused = guard.mode == "block" and not found.lets_through
            told = guard.refused(reply, found, has_begun=False) if is_refused else judged(reply, found)
            self._settle(told, progress)
            return told
        finally:
            progress.settle("left")

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
