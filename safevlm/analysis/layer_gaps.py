"""How far apart a layer keeps harmful from harmless: NN and NM cosines, the angle between them, and what chance gives.

    NN   mean cosine of two normal requests              gap = |arccos NN - arccos NM| in degrees
    NM   mean cosine of a normal and a malicious one     null = the gap when the two sides are shuffled

The security-tensor paper (methods §3.5) means over 100 random pairs. Here the mean is over all pairs, which is what the
random ones estimate; `drawn` repeats the paper's way. The interval's bootstrap draws requests, not pairs: pairs share
requests, and drawing pairs would take 200 requests for 20,000 independent ones. The trap: a gap is never negative, so
an interval that leaves out 0 says nothing; compare with the null. A request is never paired with itself, nor with its
copy in a bootstrap sample: that cosine is 1 and would pull NN up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safevlm.intervals import ROUNDS, Floats, Interval, estimate

DRAWN_PAIRS = 100
"""The paper's r."""
NULL_ROUNDS = 1_000
"""Shuffles; enough for the quantile of 50 layers."""
NULL_LEVEL = 0.05
"""Chance that any layer of a curve exceeds its null when there is nothing to see (Bonferroni over the layers)."""


@dataclass(frozen=True)
class Curve:
    """One input, an entry per layer."""

    normal: int
    """Requests."""
    malicious: int
    nn: tuple[Interval, ...]
    nm: tuple[Interval, ...]
    gap: tuple[Interval, ...]
    null: tuple[float, ...]
    """The gap that shuffled sides stay below."""
    drawn: tuple[float, ...]
    """The gap from 100 random pairs of each kind, as the paper has it."""
    samples: Floats
    """(rounds, layers): the bootstrap's gaps; one draw of requests for all layers, so that layers can be averaged."""

    @property
    def above(self) -> tuple[int, ...]:
        """Layers, counted from 1, whose gap exceeds its null."""
        pairs = zip(self.gap, self.null, strict=True)
        return tuple(layer for layer, (gap, null) in enumerate(pairs, 1) if gap.number > null)

    def mean_gap(self, layers: Sequence[int]) -> Interval:
        """Over some layers, counted from 1."""
        places = [layer - 1 for layer in layers]
        value = float(np.mean([self.gap[place].number for place in places]))
        return estimate(value, self.samples[:, places].mean(1), self.normal + self.malicious)


@dataclass(frozen=True)
class InputCurve:
    """One way into the model: its numbers, None where too few requests reached the model."""

    name: str
    curve: Curve | None
    left_out: Mapping[str, int]
    """Requests by side that the defense answered itself."""
    shift: Mapping[str, tuple[Interval, ...]] | None = None
    """By side and layer: mean cosine of a request without and with the defense."""


def curve(units: NDArray[np.float32], sides: Floats, seed: int) -> Curve:
    """(k, layers, d) states of length 1 and (2, k) zeros and ones: who is normal, who malicious → the numbers."""
    layers = units.shape[1]
    draws, shuffles = _resampled(sides, seed), _shuffled(sides, seed)
    nn, nm, gaps, nulls, drawn, samples = [], [], [], [], [], []
    for layer in range(layers):
        cosines = _cosines(units[:, layer])
        values, sampled = pair_means(cosines, sides), pair_means(cosines, draws)
        n = int(sides.sum())
        nn.append(estimate(float(values[0]), sampled[0], n))
        nm.append(estimate(float(values[1]), sampled[1], n))
        samples.append(angle(*sampled))
        gaps.append(estimate(float(angle(*values)), samples[-1], n))
        null = angle(*pair_means(cosines, shuffles))
        nulls.append(float(np.quantile(null, 1 - NULL_LEVEL / layers, method="higher")))
        drawn.append(drawn_gap(cosines, sides, seed))
    normal, malicious = sides.sum(1).astype(int)
    return Curve(
        int(normal), int(malicious), tuple(nn), tuple(nm), tuple(gaps), tuple(nulls), tuple(drawn), np.stack(samples, 1)
    )


def pair_means(cosines: Floats, sides: Floats) -> Floats:
    """(k, k) and (…, 2, k) weights → (2, …): NN and NM over all pairs of different requests."""
    normal, malicious = sides[..., 0, :], sides[..., 1, :]
    reached, own = normal @ cosines, np.diagonal(cosines)
    nn = _mean(reached, normal, normal, own)
    nm = _mean(reached, normal, malicious, own)
    return np.stack([nn, nm])


def angle(nn: Floats, nm: Floats) -> Floats:
    """The angular gap in degrees. Means are clipped: rounding can put them beyond 1."""
    return np.abs(np.degrees(np.arccos(np.clip(nn, -1, 1)) - np.arccos(np.clip(nm, -1, 1))))


def drawn_gap(cosines: Floats, sides: Floats, seed: int) -> float:
    """The paper's estimate: 100 random pairs of each kind."""
    generator = np.random.default_rng(seed)
    normal, malicious = np.flatnonzero(sides[0]), np.flatnonzero(sides[1])
    first = generator.integers(len(normal), size=DRAWN_PAIRS)
    second = (first + generator.integers(1, len(normal), size=DRAWN_PAIRS)) % len(normal)
    nn = cosines[normal[first], normal[second]].mean()
    nm = cosines[generator.choice(normal, DRAWN_PAIRS), generator.choice(malicious, DRAWN_PAIRS)].mean()
    return float(angle(nn, nm))


def _mean(reached: Floats, ones: Floats, others: Floats, own: Floats) -> Floats:
    """Weighted mean over pairs, without those of a request with itself."""
    same = ones * others
    total = (reached * others).sum(-1) - same @ own
    return total / (ones.sum(-1) * others.sum(-1) - same.sum(-1))


def _cosines(units: NDArray[np.float32]) -> Floats:
    wide = units.astype(np.float64)
    return wide @ wide.T


def _resampled(sides: Floats, seed: int) -> Floats:
    """(rounds, 2, k): how often each request was drawn, with replacement, within its side."""
    generator = np.random.default_rng(seed)
    counts = [generator.multinomial(int(side.sum()), side / side.sum(), size=ROUNDS) for side in sides]
    return np.stack(counts, 1).astype(np.float64)


def _shuffled(sides: Floats, seed: int) -> Floats:
    """(rounds, 2, k): the sides given to random requests."""
    generator = np.random.default_rng(seed)
    return np.stack([sides[:, generator.permutation(sides.shape[1])] for _ in range(NULL_ROUNDS)])
