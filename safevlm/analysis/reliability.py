"""Are probabilities what they say? Reliability curves, expected calibration error, and the temperature that mends it.

Expected calibration error (Naeini et al. 2015; Guo et al. 2017): mean distance between confidence and share right over
bins of equal width, weighted by the images in them. It is never below what chance gives, so compare, do not admire.
A temperature (Guo et al. 2017) divides the logits by one number, found by likelihood: the arg-max stays, confidence
moves. Its targets are smoothed as Platt (1999) did: a head without a mistake would else want a temperature of 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safevlm import intervals
from safevlm.defenses.calibration import SMALLEST
from safevlm.intervals import Floats

BINS = 10
TEMPERATURES = (0.1, 10.0)
"""Bounds of the search."""


@dataclass(frozen=True)
class Bin:
    """The images of one range of confidence."""

    confidence: float
    right: float
    low: float
    high: float
    n: int


def tempered(probabilities: Floats, temperature: float) -> Floats:
    """(n, names): `safevlm.defenses.calibration.tempered` for many images at once."""
    if temperature == 1.0:
        return probabilities
    powers = np.log(np.maximum(probabilities, SMALLEST)) / temperature
    weights = np.exp(powers - powers.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def fit_temperature(probabilities: Floats, truth: NDArray[np.int64]) -> float:
    """The temperature of least negative log-likelihood; 1 without labels."""
    from scipy.optimize import minimize_scalar

    n, names = probabilities.shape
    if n == 0:
        return 1.0
    smoothing = 1 / (n + names)
    targets = np.full((n, names), smoothing / (names - 1))
    targets[np.arange(n), truth] = 1 - smoothing
    logs = np.log(np.maximum(probabilities, SMALLEST))

    def loss(log_temperature: float) -> float:
        powers = logs / np.exp(log_temperature)
        highest = powers.max(1, keepdims=True)
        normaliser = highest + np.log(np.exp(powers - highest).sum(1, keepdims=True))
        return float(-(targets * (powers - normaliser)).sum() / n)

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x))


def top_label(probabilities: Floats, truth: NDArray[np.int64]) -> tuple[Floats, NDArray[np.bool_]]:
    """Confidence of the likeliest name, and whether it is right."""
    return probabilities.max(1), probabilities.argmax(1) == truth


def bins(confidence: Floats, right: NDArray[np.bool_]) -> list[Bin]:
    """The bins that hold an image."""
    own = _bin_of(confidence)
    found = []
    for at in range(BINS):
        rows = own == at
        n = int(rows.sum())
        if n:
            low, high = intervals.wilson(int(right[rows].sum()), n)
            found.append(Bin(float(confidence[rows].mean()), float(right[rows].mean()), low, high, n))
    return found


def calibration_error(confidence: Floats, right: NDArray[np.bool_], seed: int) -> dict[str, Any]:
    """Expected calibration error with its bootstrap interval."""
    own, gap = _bin_of(confidence), confidence - right

    def statistic(weights: Floats) -> float:
        return float(np.abs(np.bincount(own, weights * gap, BINS)).sum() / weights.sum())

    return intervals.weighted(statistic, np.zeros(len(own), dtype=np.int64), seed).to_dict()


def likelihood(probabilities: Floats, truth: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(truth)), truth], SMALLEST)).mean())


def _bin_of(confidence: Floats) -> NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
