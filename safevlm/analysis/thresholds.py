"""A threshold of risk that keeps a promise about false positives, from n clean images.

A false positive is a clean image whose risk reaches the threshold. Sort the n clean risks; the threshold stands just
above the k-th. Both promises need only that the n and the images to come are alike (exchangeable), no model, and
hold for every n:

    on average        k = ceil((n + 1)(1 - target)). The next clean image is a false positive with probability at
                      most `target`, averaged over calibrations: split conformal prediction (Papadopoulos et al. 2002;
                      Vovk, Gammerman and Shafer 2005). Of single calibrations about half lie above the target.
    with confidence   the smallest k with P(Bin(n, target) <= n - k) <= 1 - confidence, which says: Clopper and
                      Pearson's upper bound (1934) for n - k false positives among n is at most `target`. In a share
                      `confidence` of calibrations the rate on all images to come is at most `target` (Wilks 1941;
                      Vovk 2012, Conditional validity of inductive conformal predictors, proposition 2a). This is
                      what is written.

A threshold per category splits the target, and 1 - confidence, evenly over the risky categories: a clean image counts
for the category that is its likeliest risk, and the sum keeps the promise (union bound). A threshold may always be
raised: fewer images reach it. It is raised to the least risky image of the data that reaches it, which costs no
recall on the data, but not above 0.5, since risks unlike the data's come later; `spend_all` does not raise it at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safevlm.defenses.calibration import SMALLEST
from safevlm.intervals import Floats
from safevlm.usage import UsageError

Thresholds = float | dict[str, float]
EVEN = 0.5
"""A risk as likely as not."""


@dataclass(frozen=True)
class Promise:
    """What is asked of a threshold."""

    target: float
    """Highest share of clean images that may be flagged."""
    confidence: float | None
    """Share of calibrations that must keep to it; None: on average only."""

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise UsageError(f"--target-fpr {self.target:g}: must lie between 0 and 1")
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise UsageError(f"--confidence {self.confidence:g}: must lie between 0 and 1")

    def split(self, parts: int) -> Promise:
        """The promise of each of so many parts, that the whole may keep this one."""
        confidence = None if self.confidence is None else 1 - (1 - self.confidence) / parts
        return Promise(self.target / parts, confidence)

    def rank(self, n: int) -> int:
        """Which of n clean risks, from the smallest on, the threshold stands above. ValueError: too few."""
        if n < self.fewest():
            raise ValueError(
                f"{n} clean images are too few to promise a false-positive rate of {self.target:.4g}; "
                f"{self.fewest()} at least for the threshold, as many again for the temperatures"
            )
        if self.confidence is None:
            return math.ceil((n + 1) * (1 - self.target) - 1e-9)  # 20 * 0.95 must not become 20
        from scipy.stats import binom

        allowed = np.arange(n + 1)
        kept = allowed[binom.cdf(allowed, n, self.target) <= 1 - self.confidence]
        return n - int(kept.max())

    def fewest(self) -> int:
        """Clean images below which no threshold keeps the promise."""
        if self.confidence is None:
            return math.ceil(1 / self.target - 1 - 1e-9)
        return math.ceil(math.log(1 - self.confidence) / math.log(1 - self.target) - 1e-9)


@dataclass(frozen=True)
class Risks:
    """Images as thresholds see them."""

    risk: Floats
    """1 - p(clean)."""
    top: NDArray[np.int64]
    """The likeliest risky category, an index into the risky names."""
    risky: NDArray[np.bool_]
    """Truth."""

    def at(self, rows: NDArray[np.intp]) -> Risks:
        return Risks(self.risk[rows], self.top[rows], self.risky[rows])

    def of(self, category: int) -> Floats:
        """The risk where it is this category's, 0 elsewhere: what a threshold per category is compared with."""
        return np.where(self.top == category, self.risk, 0.0)


def choose(
    data: Risks, promise: Promise, names: Sequence[str], per_category: bool = False, spend_all: bool = False
) -> Thresholds:
    """One threshold for all, or one per risky category in `names`."""
    if not per_category:
        return _threshold(data.risk, data.risky, promise, spend_all)
    part = promise.split(len(names))
    return {name: _threshold(data.of(at), data.risky, part, spend_all) for at, name in enumerate(names)}


def flagged(data: Risks, thresholds: Thresholds, names: Sequence[str]) -> NDArray[np.bool_]:
    """Which images reach the threshold, as `Calibration.read` decides."""
    if isinstance(thresholds, dict):
        return data.risk >= np.array([thresholds[name] for name in names])[data.top]
    return data.risk >= thresholds


def _threshold(risk: Floats, risky: NDArray[np.bool_], promise: Promise, spend_all: bool) -> float:
    clean = np.sort(risk[~risky])
    highest = float(clean[promise.rank(len(clean)) - 1])
    # the k-th itself must not reach it, nor what ties with it; below SMALLEST some machines take a number for 0
    threshold = max(math.nextafter(highest, math.inf), SMALLEST)
    if threshold > 1:
        raise ValueError(
            f"over {promise.target:.4g} of the clean images have the greatest risk there is; no threshold "
            "keeps the promise on them: look at the labels"
        )
    caught = risk[risky & (risk >= threshold)].tolist()
    return threshold if spend_all else max(threshold, min([EVEN, *caught]))
