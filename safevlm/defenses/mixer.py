"""Defenses that act on words: a detector with a policy (the mixer), and the fixed prompt it is measured against."""

from __future__ import annotations

import dataclasses

from safevlm.defenses import prompts
from safevlm.defenses.base import Defense, Detector, ImageFeatures, tells_images
from safevlm.defenses.policy import Policy
from safevlm.defenses.row import DefenseRow
from safevlm.defenses.verdicts import by_level, gravest, look
from safevlm.types import Reply, Request, Verdict


class Mixer(Defense):
    """Detector x policy. With the safety head as detector this is SafeVLM's mixer (methods §1.6)."""

    def __init__(self, detector: Detector, policy: Policy) -> None:
        self.name = detector.name
        self.detector = detector
        self.policy = policy

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        """On several images together, or on the gravest of them alone where that is no less grave."""
        together = self.policy.calibrated(self.detector.detect(request, features))
        if not tells_images(self.detector) or features.images < 2:
            return together
        alone = tuple(
            self.policy.calibrated(look(self.detector, request, own, f"image {own.number}: "))
            for own in features.alone()
        )
        seen = [own for own in alone if not own.is_clean]
        found = gravest([*seen, together], self.policy.strictness, by_level(self.policy.taxonomy.level_names))
        return dataclasses.replace(found, images=alone)

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        if self.abstains(verdict):
            text, told = self.policy.refusal(verdict), f"refused: {self.name} cannot decide"
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
