"""`safety-head:either`: the safety head, risky where its level *or* its category says so.

SafeVLM's rule calls an image clean when the level is `safe` or the category is `clean`: either is enough. An attacker
then needs to push only one of the two read-outs, the easier one. Here both must call it clean.

Half a verdict cannot be acted on, since a policy acts on a level and a category. The read-out that says clean is then
taken at its gravest: the risky name that the policy, beside what the other read-out says, acts on most strictly; of
equals the gravest level, or the likeliest category.
"""

from __future__ import annotations

from dataclasses import replace

from safevlm.defenses.base import Defense, Detector, ImageFeatures, tells_images
from safevlm.defenses.context import DefenseContext
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.policy import Policy
from safevlm.defenses.row import DefenseRow
from safevlm.taxonomy import CLEAN, SAFE
from safevlm.types import Request, Verdict

NAME = "safety-head:either"


class EitherDetector:
    """Another detector's verdicts, by a rule of both read-outs."""

    name = NAME

    def __init__(self, inner: Detector, policy: Policy) -> None:
        self.inner, self.policy = inner, policy
        self.tells_images = tells_images(inner)

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        said = self.inner.detect(request, features)
        verdict = self.policy.calibrated(said)
        if verdict.is_clean:  # a calibrated threshold goes by the category alone
            verdict = replace(verdict, level=said.level, category=said.category)
        return replace(whole(verdict, self.policy), source=self.name)


def whole(verdict: Verdict, policy: Policy) -> Verdict:
    """The verdict, its missing half filled in where only one read-out sees a risk."""
    if (verdict.level == SAFE) == (verdict.category == CLEAN) or not verdict.looked:
        return verdict
    return strictest(verdict, policy)


def strictest(verdict: Verdict, policy: Policy) -> Verdict:
    """The verdict with a risky name in the place of each read-out that is clean: what the policy acts on most strictly,
    of equals the gravest level and the likeliest category."""
    taxonomy, likely = policy.taxonomy, verdict.category_probabilities
    graver = [name for name in reversed(taxonomy.level_names) if name != SAFE]
    levels = graver if verdict.level == SAFE else [verdict.level]
    risky = sorted((name for name in taxonomy.category_names if name != CLEAN), key=lambda name: -likely.get(name, 0.0))
    categories = risky if verdict.category == CLEAN else [verdict.category]
    read = [replace(verdict, level=level, category=category) for level in levels for category in categories]
    return max(read, key=policy.strictness)  # of equals the first


def _build(context: DefenseContext) -> Defense:
    return Mixer(EitherDetector(context.detector("safety-head"), context.policy), context.policy)


ROW = DefenseRow(NAME, _build, "the safety head, risky where its level or its category says so")
