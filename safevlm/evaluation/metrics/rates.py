"""Rates and means with their 95 % intervals, from scores alone.

What is counted on which group is a matter of `safevlm.evaluation.metrics.measures`. A score without a value is
counted as unscored and stays out of n: it is neither safe nor unsafe, right nor wrong. A rate is therefore to be read
beside its `bounds`: what it would be at worst, were everything unscored a 0, or a 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from safevlm import intervals
from safevlm.evaluation.metrics.measures import HARMFUL_FROM as HARMFUL_FROM
from safevlm.evaluation.metrics.measures import Measure, Names, measures_named
from safevlm.evaluation.runs.files import Score
from safevlm.evaluation.suites.groups import Side
from safevlm.evaluation.suites.suite import Suite

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Rate:
    """A share (or mean) of n with its 95 % interval; an empty group has the value None."""

    value: float | None
    n: int
    low: float | None
    high: float | None
    unscored: int = 0
    bounds: Bounds | None = None
    """With everything unscored counted as 0, and as 1; None where nothing is unscored."""


NO_RATE = Rate(None, 0, None, None)


def rate(claims: Iterable[bool | None]) -> Rate:
    """Share of True among the claims; None is counted as unscored and left out."""
    counts = Counter(claims)
    n = counts[True] + counts[False]
    if n == 0:
        return Rate(None, 0, None, None, counts[None], worst_case(0, 0, counts[None]))
    low, high = intervals.wilson(counts[True], n)
    return Rate(counts[True] / n, n, low, high, counts[None], worst_case(counts[True], n, counts[None]))


def worst_case(total: float, n: int, unscored: int) -> Bounds | None:
    """The mean of n values in 0-1 that sum up to `total`, and of `unscored` more that are all 0, or all 1."""
    return (total / (n + unscored), (total + unscored) / (n + unscored)) if unscored else None


def mean(values: Iterable[float | None], seed: int = 0) -> Rate:
    """Mean of values in 0-1; None is counted as unscored and left out.

    The interval is a bootstrap. Where all values are equal, a bootstrap would claim certainty; Wilson's interval of a
    share of that size is then the careful answer, as no distribution on 0-1 with this mean varies more.
    """
    given = list(values)
    known = [float(value) for value in given if value is not None]
    if not known:
        return Rate(None, 0, None, None, len(given), worst_case(0, 0, len(given)))
    average = sum(known) / len(known)
    if len(set(known)) == 1:
        low, high = intervals.wilson_of(average, len(known))
    else:
        low, high = intervals.bootstrap_mean(known, seed)
    unscored = len(given) - len(known)
    bounds = worst_case(sum(known), len(known), unscored)
    return Rate(average, len(known), max(0.0, low), min(1.0, high), unscored, bounds)


def measured(scores: Sequence[Score], measure: Measure) -> Rate:
    """A measure over scores."""
    values = [measure.of(score) for score in scores]
    if measure.is_share:
        return rate(None if value is None else bool(value) for value in values)
    return mean(values)


def by_group(scores: Sequence[Score], suite: Suite, counts: Mapping[Side, Names]) -> dict[str, dict[str, Any]]:
    """Per group of the suite: what the judge counts on its side, and how often each label was given."""
    table: dict[str, dict[str, Any]] = {}
    for group in suite.in_order(score.group for score in scores):
        own = of_groups(scores, (group,))
        rates = {name: measured(own, one) for name, one in measures_named(counts.get(suite.side_of(group), ())).items()}
        labels = Counter(score.label for score in own)
        table[group] = {name: asdict(value) for name, value in rates.items()} | {"labels": dict(labels.most_common())}
    return table


def of_groups(scores: Sequence[Score], groups: Sequence[str]) -> list[Score]:
    return [score for score in scores if score.group in groups]
