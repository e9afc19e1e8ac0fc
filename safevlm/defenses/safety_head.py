"""Detector: the checkpoint's own safety head, arg-max of both read-outs."""

from __future__ import annotations

from safevlm.defenses.base import Sight
from safevlm.types import Request, Verdict


class SafetyHeadDetector:
    """Sees pictures only: a request in words is let through, since the head is never trained on one."""

    name = "safety-head"

    def detect(self, request: Request, sight: Sight) -> Verdict:
        if sight.risk is None:
            return Verdict(source=self.name)
        level, category = sight.risk.level, sight.risk.category
        return Verdict(
            level=max(level, key=level.__getitem__),
            category=max(category, key=category.__getitem__),
            level_probabilities=level,
            category_probabilities=category,
            source=self.name,
        )
