"""How well a space keeps labels apart, measured on the features themselves: a t-SNE alone proves nothing.

    silhouette   per image (b - a) / max(a, b): a, mean distance to its own label; b, to the nearest other label
                 (Rousseeuw 1987); 1 is apart, 0 is mixed
    purity       share of an image's k nearest neighbours that have its label; chance is the labels' own mix

Every dimension is standardised first: a CLIP tower has a few dimensions so large that nothing else would count.
Intervals are bootstraps over images with the distances held fixed; the gain of one space over another is paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safevlm import intervals
from safevlm.intervals import Floats

NEIGHBOURS = 10


@dataclass(frozen=True)
class Separation:
    """Per image, so that two spaces can be compared in pairs."""

    silhouette: Floats
    purity: Floats

    def to_dict(self, seed: int) -> dict[str, Any]:
        return {name: intervals.mean(values, seed).to_dict() for name, values in vars(self).items()}


def standardised(vectors: NDArray[np.float32]) -> Floats:
    """Mean 0 and deviation 1 in every dimension; a constant dimension becomes 0."""
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    spread = centred.std(0)
    return centred / np.where(spread > 0, spread, 1.0)


def separation(vectors: NDArray[np.float32], labels: Sequence[str], neighbours: int = NEIGHBOURS) -> Separation:
    """ValueError: fewer than two labels, or no more images than neighbours."""
    from sklearn.metrics import pairwise_distances

    names, ids = np.unique(np.asarray(labels), return_inverse=True)
    if len(names) < 2 or len(ids) <= neighbours:
        raise ValueError(f"separation needs two labels and over {neighbours} images; here {len(names)}, {len(ids)}")
    distances = pairwise_distances(standardised(vectors))
    return Separation(_silhouettes(distances, ids, len(names)), _purities(distances, ids, neighbours))


def chance(labels: Sequence[str]) -> float:
    """Purity of neighbours drawn at random."""
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    n = counts.sum()
    return float((counts * (counts - 1)).sum() / (n * (n - 1)))


def gains(ours: Separation, theirs: Separation, seed: int) -> dict[str, Any]:
    """How much better `ours` keeps the same images apart; both numbers paired by image."""
    return {
        name: intervals.mean(getattr(ours, name) - getattr(theirs, name), seed).to_dict()
        for name in ("silhouette", "purity")
    }


def table(
    spaces: Mapping[str, NDArray[np.float32]], labels: Sequence[str], base: str, seed: int
) -> dict[str, Any] | None:
    """Every space with its gain over `base`; None where the labels cannot be separated (one label, few images)."""
    try:
        found = {name: separation(vectors, labels) for name, vectors in spaces.items()}
    except ValueError:
        return None
    rows = {name: one.to_dict(seed) for name, one in found.items()}
    for name in rows:
        if name != base:
            rows[name][f"gain_over_{base}"] = gains(found[name], found[base], seed)
    return {"n": len(labels), "neighbours": NEIGHBOURS, "purity_by_chance": chance(labels), "spaces": rows}


def _silhouettes(distances: Floats, ids: NDArray[np.intp], labels: int) -> Floats:
    """An image that is alone with its label has 0, by definition."""
    members = np.eye(labels)[ids]
    counts = members.sum(0)
    sums = distances @ members
    rows = np.arange(len(ids))
    own = sums[rows, ids] / np.maximum(counts[ids] - 1, 1)
    means = sums / counts
    means[rows, ids] = np.inf
    other = means.min(1)
    widest = np.maximum(own, other)
    values = np.where(widest > 0, (other - own) / np.where(widest > 0, widest, 1.0), 0.0)
    return np.where(counts[ids] > 1, values, 0.0)


def _purities(distances: Floats, ids: NDArray[np.intp], neighbours: int) -> Floats:
    apart = distances.copy()
    np.fill_diagonal(apart, np.inf)  # nobody is his own neighbour
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :neighbours]
    return (ids[nearest] == ids[:, None]).mean(1)
