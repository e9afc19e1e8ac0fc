"""ROC and precision-recall curves of a score, with the areas under them and their intervals.

AUROC counts ties as halves. AP is the step-wise sum of precision over recall, without interpolation; it depends on
the share of positives, which the summary therefore gives beside it. The bootstrap draws positives and negatives
apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safevlm import intervals
from safevlm.intervals import Floats, Interval


@dataclass(frozen=True)
class Curves:
    """One point per distinct score, from the strictest threshold on."""

    false_positives: Floats
    recall: Floats
    precision: Floats
    auroc: Interval
    ap: Interval
    positives: int
    negatives: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "auroc": self.auroc.to_dict(),
            "ap": self.ap.to_dict(),
            "positives": self.positives,
            "negatives": self.negatives,
        }


def curves(scores: Floats, truth: NDArray[np.bool_], seed: int) -> Curves | None:
    """None when there are no positives or no negatives."""
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return None
    order = np.argsort(-scores, kind="stable")
    hits = truth[order]
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))

    def auroc(weights: Floats) -> float:
        false, true, _ = _rates(weights[order], hits, ends)
        return float(np.trapezoid(true, false))

    def ap(weights: Floats) -> float:
        _, true, precision = _rates(weights[order], hits, ends)
        return float((np.diff(true) * precision[1:]).sum())

    false, true, precision = _rates(np.ones(len(truth)), hits, ends)
    groups = truth.astype(np.int64)
    return Curves(
        false,
        true,
        precision,
        intervals.weighted(auroc, groups, seed),
        intervals.weighted(ap, groups, seed),
        positives,
        negatives,
    )


def _rates(weights: Floats, hits: NDArray[np.bool_], ends: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
    """False-positive rate, recall and precision at every distinct score, with the point (0, 0, 1) in front."""
    true = np.append(0.0, np.cumsum(weights * hits)[ends])
    false = np.append(0.0, np.cumsum(weights * ~hits)[ends])
    found = true + false
    precision = np.where(found > 0, true / np.where(found > 0, found, 1.0), 1.0)
    return false / false[-1], true / true[-1], precision
