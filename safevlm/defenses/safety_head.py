"""Detector: the checkpoint's own safety head, arg-max of both read-outs."""

from __future__ import annotations

from safevlm.defenses.base import Defense, ImageFeatures
from safevlm.defenses.context import DefenseContext
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.read_outs import likeliest
from safevlm.defenses.row import DefenseRow
from safevlm.types import Request, Verdict


class SafetyHeadDetector:
    """Sees images only: a request in words is let through, since the head is never trained on one."""

    name = "safety-head"
    tells_images = True

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        if features.risk is None:
            return Verdict.not_looked(self.name)
        level, category = features.risk.level, features.risk.category
        broken = "the safety head's probabilities are not finite; its weights or its input are broken"
        return likeliest(level, category, self.name, broken)


def _build(context: DefenseContext) -> Defense:
    if not context.has_head:
        raise ValueError("defense safety-head: this checkpoint has no safety head; train one with a stage-1 recipe")
    return Mixer(SafetyHeadDetector(), context.policy)


ROW = DefenseRow(SafetyHeadDetector.name, _build, "SafeVLM: the checkpoint's safety head decides, the policy acts")
