"""Several detectors as one: `fusion:max` and `fusion:mean` of the safety head and SafeCLIP.

Each member is read through the policy's calibration of that member first, so that what is compared or averaged are
tempered probabilities. The fused verdict has a name of its own, and with it may have a calibration of its own.

    max    the verdict of the member that sees a risk; of two that do, or of two that do not, the one with more of it
    mean   the mean of the probabilities by category and by level, then the arg-max of both; members' own thresholds
           do not act here, only their temperatures do

The trap of `max`: members decide by different rules, so the one with the higher risk may still call the image clean
(SafeCLIP below its τ). Going by the number alone would then drop the other's alarm.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence

from safevlm.defenses.base import Defense, Detector, ImageFeatures, tells_images
from safevlm.defenses.calibration import risk_of
from safevlm.defenses.context import DefenseContext
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.policy import Policy
from safevlm.defenses.row import DefenseRow
from safevlm.defenses.verdicts import gravest, look
from safevlm.types import Request, Verdict

MEMBERS = ("safety-head", "safe-clip")


def riskiest(verdicts: Sequence[Verdict], policy: Policy) -> Verdict:
    """The gravest; of equals the one with more risk."""
    return gravest(verdicts, policy.strictness, lambda verdict: risk_of(verdict.category_probabilities))


def mean(verdicts: Sequence[Verdict], policy: Policy) -> Verdict:
    """Arg-max of the mean probabilities, as the safety head decides."""
    level = _means([verdict.level_probabilities for verdict in verdicts])
    category = _means([verdict.category_probabilities for verdict in verdicts])
    return Verdict(
        level=max(level, key=level.__getitem__),
        category=max(category, key=category.__getitem__),
        level_probabilities=level,
        category_probabilities=category,
    )


RULES: dict[str, Callable[[Sequence[Verdict], Policy], Verdict]] = {"max": riskiest, "mean": mean}


class Fusion:
    """One detector of several; they share the one vision pass.

    A member that fails leaves its error in the verdict, which is that of the others.
    """

    def __init__(self, rule: str, members: Sequence[Detector], policy: Policy) -> None:
        self.name = f"fusion:{rule}"
        self.fuse = RULES[rule]
        self.members = tuple(members)
        self.policy = policy
        self.tells_images = all(map(tells_images, members))

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        if not features.images:  # members see images only
            return Verdict.not_looked(self.name)
        verdicts = [self._member(member, request, features) for member in self.members]
        errors = "; ".join(verdict.error for verdict in verdicts if verdict.error)
        known = [verdict for verdict in verdicts if not verdict.error]
        fused = self.fuse(known, self.policy) if known else Verdict.not_looked()
        return dataclasses.replace(fused, source=self.name, error=errors)

    def _member(self, member: Detector, request: Request, features: ImageFeatures) -> Verdict:
        """Calibrated; with an error where it gave nothing that can be fused."""
        verdict = self.policy.calibrated(look(member, request, features, f"{member.name}: "))
        if verdict.error or (verdict.level_probabilities and verdict.category_probabilities):
            return verdict
        return Verdict.not_looked(member.name, f"detect: {member.name}: gave no probabilities")


def _means(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: statistics.fmean(table.get(name, 0.0) for table in tables) for name in names}


def _builder(rule: str) -> Callable[[DefenseContext], Defense]:
    def build(context: DefenseContext) -> Defense:
        # a file behind the name is SafeCLIP's bank; the head reads none
        members = [context.detector(name, context.file) for name in MEMBERS]
        return Mixer(Fusion(rule, members, context.policy), context.policy)

    return build


ROWS = tuple(
    DefenseRow(
        f"fusion:{rule}",
        _builder(rule),
        f"{' and '.join(MEMBERS)} together, by their {rule}",
        takes_file=True,
        reads_folder=True,
    )
    for rule in RULES
)
