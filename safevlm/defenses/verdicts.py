"""One detector's verdict, sound or failed; and which of several counts.

Several verdicts on one request come of a stack's members, a fusion's members, and the frames of an animation. One rule
ranks them all. The trap is the failed detector: its verdict says nothing of the request, so it must neither hide what
another one saw nor be forgotten.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence

from safevlm.defenses.base import Defense, Detector, ImageFeatures
from safevlm.types import Request, Verdict

log = logging.getLogger(__name__)

Degree = Callable[[Verdict], float]


def look(defense: Defense | Detector, request: Request, features: ImageFeatures, where: str = "") -> Verdict:
    """The defense's verdict. One that cannot be had, or is unsound, is told in `error`, behind `where`."""
    try:
        verdict = _sound(defense.detect(request, features))
        return dataclasses.replace(verdict, error=f"{where}{verdict.error}") if verdict.error else verdict
    except Exception as error:  # noqa: BLE001 - a guard that breaks in any way must not let the request through
        log.error("defense %s failed in detect: %s", defense.name, error, exc_info=error)
        return Verdict.not_looked(defense.name, f"detect: {where}{type(error).__name__}: {error}")


def gravest(verdicts: Sequence[Verdict], strictness: Callable[[Verdict], int], degree: Degree) -> Verdict:
    """The verdict that counts, with the errors of those that failed.

    What is acted on most strictly, since a policy may allow what is graver, and must not thereby hide what it refuses;
    then a risk; then a detector that looked; then the higher `degree`; then the first. Failed detectors decide only
    where all failed.
    """

    def told(verdict: Verdict) -> float:
        # to six digits: two that are sure differ in the last bits, which a batch rounds otherwise than one request
        return float(f"{degree(verdict):.6g}")

    def order(verdict: Verdict) -> tuple[int, bool, bool, float]:
        return strictness(verdict), not verdict.is_clean, verdict.looked, told(verdict)

    failed = [verdict for verdict in verdicts if verdict.error]
    if len(failed) == len(verdicts):
        best = max(failed, key=lambda verdict: (verdict.looked, told(verdict)))
    else:
        best = max((verdict for verdict in verdicts if not verdict.error), key=order)
    errors = "; ".join(dict.fromkeys(verdict.error for verdict in failed))
    return best if errors == best.error else dataclasses.replace(best, error=errors)


def of_each_image(
    verdicts: Sequence[Verdict], strictness: Callable[[Verdict], int], degree: Degree
) -> tuple[Verdict, ...]:
    """Image by image the gravest of what those say that tell several images apart."""
    told = [verdict.images for verdict in verdicts if verdict.images]
    return tuple(gravest(own, strictness, degree) for own in zip(*told, strict=True))


def by_level(level_names: Sequence[str]) -> Degree:
    """Higher for a graver level; one that the taxonomy does not know is the gravest."""
    places = {name: place for place, name in enumerate(level_names)}
    return lambda verdict: places.get(verdict.level, len(places))


def _sound(verdict: Verdict) -> Verdict:
    """TypeError: it is none. ValueError: a probability is no number, so what was chosen by it is chosen by chance."""
    if not isinstance(verdict, Verdict):
        raise TypeError(f"gave {verdict!r}, not a Verdict")
    tables = {"level": verdict.level_probabilities, "category": verdict.category_probabilities}
    for kind, table in tables.items():
        for name, probability in table.items():
            if not math.isfinite(probability):
                raise ValueError(f"the probability of the {kind} {name} is {probability}")
    return verdict
