"""Looking more than once: another detector on views, or on changed versions, of the images of a request."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from safevlm.defenses.base import Detector, ImageFeatures
from safevlm.defenses.calibration import joint_risk
from safevlm.defenses.policy import Policy
from safevlm.defenses.verdicts import gravest, look
from safevlm.types import Request, Verdict


def look_at(inner: Detector, policy: Policy, request: Request, features: ImageFeatures, view: str = "") -> Verdict:
    """The calibrated verdict on one look, which `view` names; empty: on the images as they are."""
    verdict = policy.calibrated(look(inner, request, features, f"{view}: " if view else ""))
    return dataclasses.replace(verdict, view=view)


def gravest_of(
    first: Verdict, further: Callable[[], Iterable[Verdict]], policy: Policy, name: str, what: str
) -> Verdict:
    """The gravest of the verdict on the images as they are and of those that `further` gives, as the detector `name`'s.

    What breaks there is told as an error of `what`: the guard then fails closed, and what was seen before is kept.
    """
    verdicts = [first]
    try:
        for verdict in further():
            verdicts.append(verdict)
    except Exception as error:  # noqa: BLE001 - a guard that breaks in any way must not let the request through
        verdicts.append(Verdict.not_looked(name, f"detect: {what}: {type(error).__name__}: {error}"))
    found = gravest(verdicts, policy.strictness, joint_risk)
    return dataclasses.replace(found, source=name, view="" if found.is_clean else found.view)
