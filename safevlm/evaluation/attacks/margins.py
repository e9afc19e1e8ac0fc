"""How far a detector is from calling an image clean, as a number with a gradient.

A margin above 0 is a risk, below 0 clean; the attacker pushes it down. Every detector has its own rule, so every one
has a row here; one that is not here says it itself, by a method `margin(batch)` → (b,), of an `AttackedBatch`. An
attack on a detector that nobody can see through would be weak and look like robustness: it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from safevlm.defenses import Defense
from safevlm.defenses.consistent import ConsistentDetector
from safevlm.defenses.either import EitherDetector
from safevlm.defenses.fusion import Fusion
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.read_outs import lead
from safevlm.defenses.safe_clip import SafeClipDetector
from safevlm.defenses.safety_head import SafetyHeadDetector
from safevlm.defenses.smoothed import SmoothedDetector
from safevlm.defenses.stack import Stack
from safevlm.defenses.viewed import ViewsDetector
from safevlm.evaluation.attacks.attacked import AttackedBatch
from safevlm.taxonomy import CLEAN, SAFE
from safevlm.usage import UsageError

SEVERAL = 1.8
"""Logarithm of six, about as many risky labels as there are."""
STEEP = 10.0
"""Logits that a movement of 1 is worth."""
COPIES = 8
"""Noisy ones in a step against a smoothed detector."""
Margin = Callable[[AttackedBatch], Tensor]
"""A batch of requests with one image each → (b,)."""


def margins_of(defense: Defense) -> list[Margin]:
    """Of every detector of a defense. UsageError: one that nobody can see through."""
    return [_margin(detector) for detector in detectors_of(defense)]


def detectors_of(defense: Defense) -> Iterator[Any]:
    """What looks, of a defense or of every member of a stack."""
    if isinstance(defense, Stack):
        for member in defense.members:
            yield from detectors_of(member)
    elif isinstance(defense, Mixer):
        yield defense.detector
    elif defense.detects:
        yield defense


def _margin(detector: Any) -> Margin:
    own: Margin | None = getattr(detector, "margin", None)
    if own is not None:
        return own
    if type(detector) not in MARGINS:
        raise UsageError(
            f"--attack: the detector {detector.name!r} has no margin that an attack could go by; give its class a "
            "method margin(batch) -> (b,), above 0 for a risk"
        )
    return MARGINS[type(detector)](detector)


def _of_head(detector: SafetyHeadDetector) -> Margin:
    """Clean is what is clean by level or by category: the easier of both."""

    def margin(batch: AttackedBatch) -> Tensor:
        logits = batch.head_logits()
        level = lead(logits.level, batch.level_names.index(SAFE))
        return torch.minimum(level, lead(logits.category, batch.category_names.index(CLEAN)))

    return margin


def _of_safe_clip(detector: SafeClipDetector) -> Margin:
    """Risky is what is likelier than every neutral concept, and likelier than τ."""
    neutral = torch.tensor([concept.is_neutral for concept in detector.bank.concepts])

    def margin(batch: AttackedBatch) -> Tensor:
        likely = detector.bank.probabilities(detector.reading(batch.vision)).clamp_min(1e-12).log()
        risk = likely[:, ~neutral].amax(-1)
        return torch.minimum(risk - likely[:, neutral].amax(-1), risk - math.log(max(detector.bank.facts.tau, 1e-12)))

    return margin


def _of_fusion(detector: Fusion) -> Margin:
    """Every member has to be fooled; of a mean that is more than is needed, and never less."""
    members = [_margin(member) for member in detector.members]
    return lambda batch: torch.stack([member(batch) for member in members]).amax(0)


def _of_either(detector: EitherDetector) -> Margin:
    """Clean is what is clean by level and by category: both have to be fooled."""

    def margin(batch: AttackedBatch) -> Tensor:
        logits = batch.head_logits()
        level = lead(logits.level, batch.level_names.index(SAFE))
        return torch.maximum(level, lead(logits.category, batch.category_names.index(CLEAN)))

    return margin


def _of_views(detector: ViewsDetector) -> Margin:
    """The image itself, and as many of its views as must agree; a view counts from a risk on, which is a lead in logits
    less what several risky labels may have together."""
    inner, options = _margin(detector.inner), detector.options
    risk = min(max(options.risk or 0.0, 0.5), 1 - 1e-6)
    least = max(0.0, math.log(risk / (1 - risk)) - SEVERAL)

    def margin(batch: AttackedBatch) -> Tensor:
        views = inner(batch.again(detector.view_pixels)).view(len(batch.shown), -1) - least
        return torch.maximum(inner(batch), views.topk(options.votes).values[:, -1])

    return margin


def _of_consistent(detector: ConsistentDetector) -> Margin:
    """Every version has to be clean, and none may move; how sure a version is stands for its probability."""
    inner = _margin(detector.inner)

    def margin(batch: AttackedBatch) -> Tensor:
        versions = inner(batch.again(detector.view_pixels)).view(len(batch.shown), -1)
        moved = (versions.sigmoid() - versions[:, :1].sigmoid()).abs().amax(1) - detector.options.move
        return torch.maximum(versions.amax(1), STEEP * moved)

    return margin


def _of_smoothed(detector: SmoothedDetector) -> Margin:
    """In expectation over fresh noise (arXiv 1707.07397): seven of ten copies have to be fooled, so that it is sure."""
    inner = _margin(detector.inner)

    def looks(pixels: Tensor) -> Tensor:
        return torch.cat([detector.view_pixels(pixels) for _ in range(COPIES)], 1)

    return lambda batch: inner(batch.again(looks)).view(len(batch.shown), -1).quantile(0.7, dim=1)


MARGINS: dict[type, Callable[[Any], Margin]] = {
    SafetyHeadDetector: _of_head,
    SafeClipDetector: _of_safe_clip,
    Fusion: _of_fusion,
    EitherDetector: _of_either,
    ViewsDetector: _of_views,
    ConsistentDetector: _of_consistent,
    SmoothedDetector: _of_smoothed,
}
