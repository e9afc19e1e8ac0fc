"""Ways to act on a defense's verdicts that a server adds to a policy: on all of them, and on none."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

from safevlm.defenses import Defense, ImageFeatures, Inputs, prompts
from safevlm.taxonomy import Taxonomy
from safevlm.types import Reply, Request, Verdict

log = logging.getLogger(__name__)

WOULD_REFUSE = "monitored: the policy would have refused this request"
"""A line of a reply's trace."""


class _Around(Defense):
    """Does what another defense does."""

    def __init__(self, inner: Defense) -> None:
        self.inner = inner
        self.name = inner.name

    @property
    def detects(self) -> bool:
        return self.inner.detects

    @property
    def reviews(self) -> bool:
        return self.inner.reviews

    @property
    def transforms(self) -> bool:
        return self.inner.transforms

    def attach(self, ask: Any) -> None:
        super().attach(ask)
        self.inner.attach(ask)

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        return self.inner.detect(request, features)

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        return self.inner.rewrite(request, verdict)

    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        return self.inner.transform(inputs, verdict)

    def review(self, request: Request, reply: Reply, verdict: Verdict) -> Reply:
        return self.inner.review(request, reply, verdict)


class Timed(_Around):
    """Says how long each look took, also one that failed."""

    def __init__(self, inner: Defense, took: Callable[[float], object]) -> None:
        """`took`: is given the seconds."""
        super().__init__(inner)
        self.took = took

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        started = time.perf_counter()
        try:
            return self.inner.detect(request, features)
        finally:
            self.took(time.perf_counter() - started)


class Blocking(_Around):
    """Refuses whatever is flagged, also where the policy only hints or allows."""

    def __init__(self, inner: Defense, taxonomy: Taxonomy) -> None:
        super().__init__(inner)
        self.taxonomy = taxonomy

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        if verdict.looked and not verdict.is_clean:
            text = prompts.refusal(self.taxonomy, verdict.category)
            return Reply(text=text, request=request, verdict=verdict, refused_by=self.name)
        return self.inner.rewrite(request, verdict)


class Monitoring(_Around):
    """Looks and tells, and lets everything through: how a policy is tried before it acts.

    What the policy would have done stands in the reply's trace. The engine around it must let a failed detector's
    request through (`on_error="allow"`).
    """

    @property
    def reviews(self) -> bool:
        return False

    @property
    def transforms(self) -> bool:
        return False

    def strictness(self, request: Request, verdict: Verdict) -> int:
        return self.inner.strictness(request, verdict)  # of frames the one that the policy would act on most strictly

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        return request

    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        return inputs

    def review(self, request: Request, reply: Reply, verdict: Verdict) -> Reply:
        if self._would_refuse(request, verdict):
            return dataclasses.replace(reply, trace=(*reply.trace, WOULD_REFUSE))
        return reply

    def _would_refuse(self, request: Request, verdict: Verdict) -> bool:
        if verdict.error:
            return True
        try:
            return isinstance(self.inner.rewrite(request, verdict), Reply)
        except Exception as error:  # noqa: BLE001 - what breaks when it acts refuses the request, once it acts
            log.error("defense %s failed in rewrite, while it is monitored: %s", self.name, error, exc_info=error)
            return True
