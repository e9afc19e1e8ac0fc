"""How many images of each category there truly are, from what an imperfect detector reported.

    k categories · o (k,) reported counts · m (k, k) P(reported | true), a column per true category · t (k,) true counts

On a set of which 2 % are risky, a detector that calls one clean image in a hundred risky is wrong about a third of
what it reports, so raw counts mislead. A labelled calibration set gives m; then o ≈ m t is solved for t ≥ 0 with
sum t = sum o by non-negative least squares, rows weighted by the inverse standard deviation of a count. For two
categories this is the estimator of Rogan & Gladen ("Estimating prevalence from the results of a screening test", Am J
Epidemiol 107, 1978); for several, the adjusted count of Forman ("Quantifying counts and costs via classification",
Data Min Knowl Disc 17, 2008). It holds where images of a category fool the detector as often here as in the
calibration set, however rare the category is; on another kind of images it does not.

Intervals: parametric bootstrap over both sources of chance. Each column of m is drawn from its Dirichlet posterior
(prior 1/k per entry, so that an error never seen among n is not taken for impossible), and the detector's errors on
this finite set are drawn anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safevlm.intervals import percentiles

DRAWS = 1_000
ILL_CONDITIONED = 100.0
"""Above this condition of m, categories are so often taken for each other that their split is a guess."""


@dataclass(frozen=True)
class CorrectedCount:
    """A count with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PrevalenceEstimate:
    """What there truly is."""

    categories: dict[str, CorrectedCount]
    risky: CorrectedCount
    """All categories but the clean one."""
    condition: float
    """Of m; see `ILL_CONDITIONED`."""


def rogan_gladen(share: float, sensitivity: float, specificity: float) -> float:
    """True share of the risky from the reported share, within 0 and 1."""
    return float(np.clip((share + specificity - 1) / (sensitivity + specificity - 1), 0, 1))


def estimate(
    reported: Sequence[int], confusion: np.ndarray, names: Sequence[str], clean: int, seed: int = 0
) -> PrevalenceEstimate:
    """Corrects reported counts. `confusion` (k, k): calibration counts, rows reported, columns true.

    ValueError: a category without a calibration image; nothing can be said about its errors.
    """
    empty = [name for name, total in zip(names, confusion.sum(0), strict=True) if not total]
    if empty:
        raise ValueError(f"the calibration has no image of {empty}; it needs some of every category")
    counts = np.asarray(reported, dtype=np.float64)
    rates = confusion / confusion.sum(0)
    values = solve(counts, rates)
    draws = _draws(values, counts, confusion, np.random.default_rng(seed))
    risky = np.delete(np.arange(len(names)), clean)
    return PrevalenceEstimate(
        categories={name: _count(values[at], draws[:, at]) for at, name in enumerate(names)},
        risky=_count(values[risky].sum(), draws[:, risky].sum(1)),
        condition=float(np.linalg.cond(rates)),
    )


def solve(counts: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """(k,) reported counts → (k,) true counts: none negative, the same sum."""
    from scipy.optimize import nnls

    total = counts.sum()
    if not total:
        return np.zeros_like(counts)
    weights = 1 / np.sqrt(counts + 1)
    # the last row says that the shares sum to one, with more weight than any count has
    equations = np.vstack([rates * weights[:, None] * total, np.full(len(counts), 1e3 * total)])
    shares, _ = nnls(equations, np.append(counts * weights, 1e3 * total))
    return total * shares / shares.sum()


def _draws(values: np.ndarray, counts: np.ndarray, confusion: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(draws, k): true counts that could be behind the report."""
    return np.stack([_draw(values, counts, confusion, generator) for _ in range(DRAWS)])


def _draw(values: np.ndarray, counts: np.ndarray, confusion: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    rates = np.stack([generator.dirichlet(column + 1 / len(column)) for column in confusion.T], axis=1)
    whole = np.round(values).astype(np.int64)
    errors = sum(generator.multinomial(many, column) for many, column in zip(whole, rates.T, strict=True))
    noise = errors - rates @ whole
    return solve(np.clip(counts + noise, 0, None), rates)


def _count(value: float, draws: np.ndarray) -> CorrectedCount:
    low, high = percentiles(draws)
    return CorrectedCount(round(float(value), 1), round(float(min(low, value)), 1), round(float(max(high, value)), 1))
