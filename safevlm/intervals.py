"""95 % confidence intervals, two-sided: Wilson's score interval for shares, percentile bootstrap for the rest.

Wilson, "Probable inference, the law of succession, and statistical inference" (J Am Stat Assoc 22, 1927). All that is
random comes from the seed that the caller gives. numpy alone: judging and reporting load no torch.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""97.5 % quantile of the normal distribution."""
TAILS = (2.5, 97.5)
"""Percentiles of the bootstrap's interval."""
ROUNDS = 500
"""Bootstrap samples of `mean` and `weighted`, whose statistics are slow."""
MEAN_DRAWS = 10_000
"""Bootstrap samples of `bootstrap_mean`."""
MEDIAN_DRAWS = 2_000
"""Bootstrap samples of `bootstrap_median`."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A statistic of n items with its 95 % interval; a value of None: not defined on these items."""

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None

    @property
    def number(self) -> float:
        """The value. ValueError: it is not defined."""
        if self.value is None:
            raise ValueError(f"no value on {self.n} items")
        return self.value

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share(claims: NDArray[np.bool_]) -> Interval:
    """Share of True with Wilson's interval; no items: no value."""
    n, hits = len(claims), int(np.count_nonzero(claims))
    if n == 0:
        return Interval(None, 0)
    low, high = wilson(hits, n)
    return Interval(hits / n, n, low, high)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion. ValueError: n is 0, or hits do not lie in 0-n."""
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"no interval for {hits} of {n}")
    low, high = wilson_of(hits / n, n)
    # at the ends the formula gives 0 and 1 up to rounding, which must not leave the share outside
    return (0.0 if hits == 0 else low), (1.0 if hits == n else high)


def wilson_of(part: float, n: int) -> tuple[float, float]:
    """Wilson's interval of any share of n, also of one that no number of hits gives."""
    centre = (part + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(part * (1 - part) / n + Z * Z / (4 * n * n))
    return centre - half, centre + half


def percentiles(samples: Sequence[float] | Floats) -> tuple[float, float]:
    """The bootstrap's interval, from a statistic's values on the bootstrap samples."""
    low, high = np.percentile(samples, TAILS)
    return float(low), float(high)


def estimate(value: float, samples: Sequence[float] | Floats, n: int) -> Interval:
    """A statistic of n items with the percentile interval of its bootstrap samples."""
    return Interval(value, n, *percentiles(samples))


def bootstrap_mean(values: Sequence[float], seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, for values of which few are distinct."""
    # How often each value is drawn is all that the mean of a sample depends on, and it is drawn at once.
    distinct, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    n = int(counts.sum())
    return percentiles(np.random.default_rng(seed).multinomial(n, counts / n, size=MEAN_DRAWS) @ distinct / n)


def bootstrap_median(values: Sequence[float], seed: int) -> tuple[float, float]:
    """Bootstrap interval of the median; its ends are medians of samples, not interpolated."""
    generator = random.Random(seed)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(MEDIAN_DRAWS))
    low, high = (round(tail / 100 * (MEDIAN_DRAWS - 1)) for tail in TAILS)
    return medians[low], medians[high]


def mean(values: Floats, seed: int) -> Interval:
    """Mean of (n,) values with its bootstrap interval; no items: no value."""
    if len(values) == 0:
        return Interval(None, 0)
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(ROUNDS)]
    return estimate(float(values.mean()), means, len(values))


def weighted(statistic: Callable[[Floats], float], groups: NDArray[np.int64], seed: int) -> Interval:
    """`statistic(weights)` of items with its bootstrap interval; weights (n,) say how often each item was drawn.

    Items are drawn within their `groups` (n,), so that no sample lacks a kind of item without which the statistic is
    not defined.
    """
    generator = np.random.default_rng(seed)
    rows = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    values = []
    for _ in range(ROUNDS):
        weights = np.zeros(len(groups))
        for members in rows:
            weights[members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)))
        values.append(statistic(weights))
    return estimate(statistic(np.ones(len(groups))), values, len(groups))
