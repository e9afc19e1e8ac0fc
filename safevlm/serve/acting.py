"""Two ways to act on a defense's verdicts that a server adds to a policy: on all of them, and on none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from safevlm.defenses import Defense, ImageFeatures, Inputs, prompts
from safevlm.taxonomy import Taxonomy
from safevlm.types import Reply, Request, Verdict


class _Around(Defense):
    """Looks as another defense looks."""

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

    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        return self.inner.transform(inputs, verdict)

    def review(self, request: Request, reply: Reply, verdict: Verdict) -> Reply:
        return self.inner.review(request, reply, verdict)


class Monitoring(_Around):
    """Looks and counts, and lets everything through: how a policy is tried before it acts."""

    def __init__(self, inner: Defense, would_block: Callable[[], object]) -> None:
        """`would_block` is called for each request that the defense would have refused."""
        super().__init__(inner)
        self.would_block = would_block

    @property
    def reviews(self) -> bool:
        return False

    def strictness(self, request: Request, verdict: Verdict) -> int:
        return self.inner.strictness(request, verdict)  # what would come of it; ranking frames counts nothing

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        if isinstance(self.inner.rewrite(request, verdict), Reply):
            self.would_block()
        return request
