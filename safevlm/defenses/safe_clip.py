"""Detector: zero-shot, by CLIP's own text space (SafeCLIP, arXiv 2503.00037; methods §2).

The CLS that LLaVA throws away, of its own tower and out of the one shared pass, is projected into CLIP's text space and
held against a bank of concepts. An image is risky when the likeliest concept is not neutral and likelier than τ. It
never sees the question, so words alone are let through. The trap: a CLS of the layer that LLaVA reads (`paper`) is not
what the projection was trained on (`pooled`); both give probabilities that look alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from safevlm.defenses.base import Defense, ImageFeatures
from safevlm.defenses.context import DefenseContext, ModelFacts
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.row import DefenseRow
from safevlm.taxonomy import Taxonomy
from safevlm.types import Request, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from safevlm.defenses.bank import Bank, Feature
    from safevlm.defenses.concepts import Concept

NAME = "safe-clip"

READINGS: dict[str, Callable[[Any], Tensor]] = {
    "paper": lambda vision: vision.cls,
    "paper, normed": lambda vision: vision.normed_cls,
    "last": lambda vision: vision.last_cls,
    "pooled": lambda vision: vision.clip_cls,
}
"""Feature → (b, v) out of a `VisionPass`. A bank is of the first or of the last; the other two are for comparison. Of
a family's `ImagePass` only the last can be read."""


def _siglip_patches(vision: Any) -> Tensor:
    """(b, p, v) out of an `ImagePass`: what a bank of a SigLIP reads."""
    patches: Tensor = vision.siglip_patches
    return patches


@dataclass(frozen=True)
class ConceptMatch:
    """What an image was taken for."""

    concept: Concept
    """The likeliest one."""
    is_risky: bool
    """It is not neutral, and likelier than τ."""
    probabilities: tuple[float, ...]
    """In the bank's order."""


class SafeClipDetector:
    tells_images = True

    def __init__(self, bank: Bank, taxonomy: Taxonomy, feature: str | None = None, name: str = NAME) -> None:
        """`feature`: a key of `READINGS`; none: the bank's own."""
        self.name = name
        self.bank = bank
        self.taxonomy = taxonomy
        self.reading = READINGS[feature or bank.facts.feature] if bank.facts.kind == "clip" else _siglip_patches

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        """The verdict on the gravest image."""
        if not features.images:
            return Verdict.not_looked(self.name)
        return self.verdict(self.gravest([self._finding(row) for row in self.found(features)]))

    def found(self, features: ImageFeatures) -> Sequence[Sequence[float]]:
        """Probabilities of every image of a request, in the bank's order."""
        return features.per_image(self.probabilities)

    def look(self, vision: Any) -> list[ConceptMatch]:
        """One finding per image of a `VisionPass`."""
        return [self._finding(row) for row in self.probabilities(vision)]

    def probabilities(self, vision: Any) -> list[list[float]]:
        """Of every image of a `VisionPass`, in the bank's order."""
        found: list[list[float]] = self.bank.probabilities(self.reading(vision)).tolist()
        return found

    def gravest(self, findings: Sequence[ConceptMatch]) -> ConceptMatch:
        """By level, then by risk."""
        levels = self.taxonomy.level_names
        return max(findings, key=lambda one: (one.is_risky and levels.index(one.concept.level), self._risk(one)))

    def verdict(self, finding: ConceptMatch) -> Verdict:
        verdict = Verdict(
            level_probabilities=self._sums(finding, "level", self.taxonomy.level_names),
            category_probabilities=self._sums(finding, "category", self.taxonomy.category_names),
            source=self.name,
        )
        if not finding.is_risky:
            return verdict
        return replace(verdict, level=finding.concept.level, category=finding.concept.category)

    def _finding(self, probabilities: Sequence[float]) -> ConceptMatch:
        if not all(map(math.isfinite, probabilities)):
            # the arg-max of nan is the first concept, and that one may be neutral
            raise ValueError("SafeCLIP's probabilities are not finite; the tower's weights or its input are broken")
        likeliest = max(range(len(probabilities)), key=probabilities.__getitem__)
        concept = self.bank.concepts[likeliest]
        is_risky = not concept.is_neutral and probabilities[likeliest] > self.bank.facts.tau
        return ConceptMatch(concept, is_risky, tuple(probabilities))

    def _risk(self, finding: ConceptMatch) -> float:
        pairs = zip(self.bank.concepts, finding.probabilities, strict=True)
        return sum(likely for concept, likely in pairs if not concept.is_neutral)

    def _sums(self, finding: ConceptMatch, label: str, names: Sequence[str]) -> Mapping[str, float]:
        """Mass of the concepts by one of their labels; 0 for a name that no concept has."""
        sums = dict.fromkeys(names, 0.0)
        for concept, likely in zip(self.bank.concepts, finding.probabilities, strict=True):
            sums[getattr(concept, label)] += likely
        return sums


def check_bank(bank: Bank, facts: ModelFacts, where: object, feature: Feature | None = None) -> None:
    """ValueError: what the bank reads, or `feature` in its place, is not what the model's own tower gives."""
    _check_side(facts, feature or bank.facts.feature)
    if bank.facts.kind != facts.text_side:
        raise ValueError(
            f"{where}: made with a {bank.facts.kind}, and this model's vision tower is a {facts.text_side}'s; make one "
            "with the model that the tower is from"
        )
    bank.check_tower(facts.tower(), where)


def _check_side(facts: ModelFacts, feature: Feature | None) -> None:
    if not facts.text_side:
        raise ValueError(
            "this model's vision tower is no CLIP's and no SigLIP's, and has no text side to hold images against; give "
            f"it a companion: --defense {NAME}:companion=DIR"
        )
    if feature is not None and feature not in facts.clip_features:
        raise ValueError(
            f"the feature {feature!r} is the CLS of the layer that LLaVA-v1.5 reads, and this model has none; take "
            f"{NAME}:pooled, with a bank of `safevlm embed --feature pooled`"
        )


def _builder(feature: Feature | None) -> Callable[[DefenseContext], Defense]:
    def build(context: DefenseContext) -> Defense:
        from safevlm.defenses.bank import BANK_FILE, MAKE_IT, read_bank  # late: it brings torch, and judges do without

        facts, taxonomy = context.fitting(), context.policy.taxonomy
        _check_side(facts, feature)
        file = context.find(BANK_FILE, how=MAKE_IT)
        bank = read_bank(file, taxonomy)
        check_bank(bank, facts, file, feature)
        detector = SafeClipDetector(bank.to(facts.device), taxonomy, feature, _name(feature))
        return Mixer(detector, context.policy)

    return build


def _name(feature: Feature | None) -> str:
    return f"{NAME}:{feature}" if feature else NAME


_TEXTS: dict[Feature | None, str] = {
    None: "zero-shot: CLIP's CLS against a bank of concepts decides, the policy acts",
    "paper": "SafeCLIP by the CLS of the layer that LLaVA reads",
    "pooled": "SafeCLIP by CLIP's own pooled CLS",
}
ROWS = tuple(
    DefenseRow(_name(feature), _builder(feature), text, takes_file=True, reads_folder=True)
    for feature, text in _TEXTS.items()
)
