"""One request from its arrival to its end: which engine it gets, and what is counted and kept of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from safevlm.serve.access import CALLER
from safevlm.serve.acting import WOULD_REFUSE
from safevlm.serve.conversation import OpenedRequest
from safevlm.serve.deployment import Deployment, Treatment
from safevlm.serve.errors import ApiError
from safevlm.serve.looking import LetThrough
from safevlm.serve.metrics import Metrics
from safevlm.serve.output_guard import JudgedReply
from safevlm.serve.settlement import Keeper, Settlement
from safevlm.types import Reply, Verdict

log = logging.getLogger(__name__)

ENDS = {429: "busy", 400: "unusable"}
"""What became of a request that ended in an error of this status; of every other one: it failed."""


class InProgress:
    """Stays with the deployment that was in force when the request came."""

    def __init__(
        self,
        deployment: Deployment,
        metrics: Metrics,
        keepers: Sequence[Keeper],
        question: OpenedRequest,
        *,
        blocks: bool = False,
        treatment: Treatment | None = None,
    ) -> None:
        """`blocks`: whatever is flagged is refused. `treatment`: in place of the deployment's, where another one is
        offered. ApiError 401: the request's key was taken out meanwhile."""
        self.key = CALLER.get()
        usual = deployment.treatment()
        self.treatment = treatment or usual
        self.digests = tuple(image.digest for image in question.images)
        self.is_allowed = not blocks and deployment.knows(self.digests)
        self.engine = self.treatment.engine(blocks=blocks, is_known=self.is_allowed)
        self.is_scored = False
        """Whether its answer is being scored after it was sent, and the request is settled then."""
        self.decided: Reply | None = None
        """What was decided about it, where its end is settled later."""
        self._id = question.request.id
        self._metrics = metrics
        self._keepers = keepers
        self._began, self._started = time.time(), time.perf_counter()
        self._is_settled = False
        metrics.images.inc(len(self.digests))

    @contextmanager
    def settling(self) -> Generator[None]:
        """Whatever ends the request before it is settled is what became of it."""
        action = "failed"
        try:
            yield
        except ApiError as error:
            action = ENDS.get(error.status, action)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            action = "left"
            raise
        finally:
            if not self.is_scored:
                self.settle(action, self.decided)

    def settle(self, action: str, reply: Reply | None = None, verdict: Verdict | None = None) -> None:
        """Counts what became of the request and tells it to those who keep it; the first time that it is called.

        `reply`: None where there was none. `verdict`: where there is one and no reply.
        """
        if self._is_settled:
            return
        self._is_settled = True
        seconds = time.perf_counter() - self._started
        is_monitored = self.treatment.is_monitor and not self.is_allowed
        would_refuse = is_monitored and reply is not None and WOULD_REFUSE in reply.trace
        self._metrics.requests.labels(action).inc()
        self._metrics.seconds.observe(seconds)
        if would_refuse:
            self._metrics.would_block.inc()
        settled = Settlement(
            id=self._id,
            key=self.key,
            action=action,
            verdict=verdict if reply is None else reply.verdict,
            policy=self.treatment.version,
            is_monitor=self.treatment.is_monitor,
            would_refuse=would_refuse,
            images=self.digests,
            began=self._began,
            seconds=seconds,
            output=reply.output.to_dict() if isinstance(reply, JudgedReply) else None,
        )
        for keeper in self._keepers:
            try:
                keeper.keep(settled)
            except Exception as error:  # noqa: BLE001 - what keeps decisions must not make them
                self._metrics.record_errors.labels(keeper.name).inc()
                log.error("%s: a decision could not be kept (%s)", keeper.name, type(error).__name__)

    def action_of(self, reply: Reply) -> str:
        """What was done about the request, in a word."""
        decided = self.decided
        if reply.refused_by and isinstance(reply, JudgedReply):
            return "withheld"
        if reply.refused_by and not isinstance(decided, LetThrough):
            return "refused"
        if self.is_allowed:
            return "allowed"
        if isinstance(decided, LetThrough):  # a refusal of the upstream's own is what it answered
            return "passed" if decided.rewritten == decided.request else "hinted"
        return "hinted" if any(line.startswith("added to the question") for line in reply.trace) else "passed"
