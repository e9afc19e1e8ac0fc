"""Defenses that act on words: a detector with a policy (the mixer), and the fixed prompt it is measured against."""

from __future__ import annotations

import dataclasses

from safevlm.defenses import prompts
from safevlm.defenses.base import Defense, Detector, ImageFeatures
from safevlm.defenses.policy import Policy
from safevlm.defenses.row import DefenseRow
from safevlm.types import Reply, Request, Verdict


class Mixer(Defense):
    """Detector x policy. With the safety head as detector this is SafeVLM's mixer (methods §1.6)."""

    def __init__(self, detector: Detector, policy: Policy) -> None:
        self.name = detector.name
        self.detector = detector
        self.policy = policy

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        return self.policy.calibrated(self.detector.detect(request, features))

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        if self.abstains(verdict):
            text, told = prompts.refusal(self.policy.taxonomy, verdict.category), f"refused: {self.name} cannot decide"
            return Reply(text, request, verdict, refused_by=self.name, trace=(told,))
        return self.policy.act(request, verdict, self.name)


class StaticPrompt(Defense):
    """The same safety prompt in front of every question: the baseline that needs no detector."""

    name = "static-prompt"

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        return dataclasses.replace(request, text=f"{prompts.STATIC_PROMPT}\n{request.text}")


ROW = DefenseRow(
    StaticPrompt.name,
    lambda context: StaticPrompt(),
    "a fixed safety prompt on every request",
    works_on_served_model=True,
)
