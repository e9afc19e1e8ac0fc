"""Numbers with what they are worth: Wilson for shares, percentile bootstrap for the rest. 95 %, both sides."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""97.5 % quantile of the normal distribution."""
TAILS = (2.5, 97.5)
"""Percentiles of the bootstrap's interval."""
ROUNDS = 500
"""Bootstrap samples."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A number, how many images it stands on, and its 95 % interval; None: not defined on these images."""

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share(claims: NDArray[np.bool_]) -> Interval:
    """Share of True with Wilson's score interval."""
    n, hits = len(claims), int(np.count_nonzero(claims))
    if n == 0:
        return Interval(None, 0)
    low, high = wilson(hits, n)
    return Interval(hits / n, n, low, high)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion."""
    low, high = wilson_of(hits / n, n)
    # at the ends the formula gives 0 and 1 up to rounding, which must not leave the share outside
    return (0.0 if hits == 0 else low), (1.0 if hits == n else high)


def wilson_of(part: float, n: int) -> tuple[float, float]:
    """The same of any share of n, also of one that no number of hits gives."""
    centre = (part + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(part * (1 - part) / n + Z * Z / (4 * n * n))
    return centre - half, centre + half


def mean(values: Floats, seed: int) -> Interval:
    """Mean of per-image values; the bootstrap draws images."""
    if len(values) == 0:
        return Interval(None, 0)
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(ROUNDS)]
    return _estimate(float(values.mean()), means, len(values))


def weighted(statistic: Callable[[Floats], float], groups: NDArray[np.int64], seed: int) -> Interval:
    """`statistic(weights)` over images; the bootstrap gives each image the number of times it was drawn.

    Drawn within `groups`, so that no sample lacks a kind of image without which the number is not defined.
    """
    generator = np.random.default_rng(seed)
    rows = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    values = []
    for _ in range(ROUNDS):
        weights = np.zeros(len(groups))
        for members in rows:
            weights[members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)))
        values.append(statistic(weights))
    return _estimate(statistic(np.ones(len(groups))), values, len(groups))


def _estimate(value: float, samples: list[float], n: int) -> Interval:
    low, high = np.percentile(samples, TAILS)
    return Interval(value, n, float(low), float(high))
