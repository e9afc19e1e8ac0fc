"""Detector: the truth. The upper bound of what looking can give; evaluation only."""

from __future__ import annotations

from collections.abc import Mapping

from safevlm.defenses.base import Defense, ImageFeatures
from safevlm.defenses.context import DefenseContext
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.row import DefenseRow
from safevlm.types import Request, Verdict


class OracleDetector:
    name = "oracle"

    def __init__(self, truths: Mapping[str, Verdict]) -> None:
        self.truths = dict(truths)

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        """The truth about an image. Like every detector of images it lets requests in words through."""
        if request.id not in self.truths:
            raise ValueError(f"the oracle knows nothing of request {request.id!r}; it works in evaluation only")
        return self.truths[request.id] if features.images else Verdict.not_looked(self.name)


def _build(context: DefenseContext) -> Defense:
    return Mixer(OracleDetector(context.truths), context.policy)


ROW = DefenseRow(OracleDetector.name, _build, "true labels decide, the policy acts: the upper bound, evaluation only")
