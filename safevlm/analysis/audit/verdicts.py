"""Probabilities → verdicts: what the audit calls risky.

Without a threshold the head's arg-max of category and level, as in chat (SafeVLM's rule: `clean` or `safe`, either is
enough to pass). With one, every image whose categories other than `clean` add up to it: an audit that wants few
misses looks below a half, one that wants few false alarms above. The policy then says which verdicts matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safevlm.defenses.policy import Policy
from safevlm.taxonomy import CLEAN, SAFE, Taxonomy
from safevlm.types import Verdict
from safevlm.usage import UsageError


@dataclass(frozen=True)
class Verdicts:
    """Of many images, one row each; ids as in the taxonomy, -1 where an image could not be read."""

    category: np.ndarray
    level: np.ndarray
    risk: np.ndarray
    """Probability that the category is any but `clean`."""
    actions: list[str]
    """What the policy does; empty where an image could not be read. All but `allow` are flagged."""

    @property
    def flagged(self) -> np.ndarray:
        return np.array([action not in ("", "allow") for action in self.actions], bool)


@dataclass(frozen=True)
class Rule:
    """What makes an image risky."""

    policy: Policy
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UsageError(f"--threshold {self.threshold}: not a probability above 0")

    def __call__(self, category: np.ndarray, level: np.ndarray) -> Verdicts:
        """(n, categories) and (n, levels) → verdicts. A verdict is clean in both of its halves, or in none."""
        taxonomy = self.policy.taxonomy
        clean, safe = taxonomy.category_names.index(CLEAN), taxonomy.level_names.index(SAFE)
        readable = ~np.isnan(category[:, 0])
        risk = 1 - category[:, clean]
        if self.threshold is None:
            risky = (category.argmax(1) != clean) & (level.argmax(1) != safe)
        else:
            risky = risk >= self.threshold
        categories = np.where(risky, _best_but(category, clean), clean)
        levels = np.where(risky, _best_but(level, safe), safe)
        categories[~readable] = levels[~readable] = -1
        return Verdicts(categories, levels, risk, self._actions(category, categories, levels))

    def _actions(self, probabilities: np.ndarray, categories: np.ndarray, levels: np.ndarray) -> list[str]:
        names = self.policy.taxonomy.category_names
        clean = names.index(CLEAN)
        actions = ["" if one < 0 else "allow" for one in categories]
        for row in np.flatnonzero((categories >= 0) & (categories != clean)):
            name = names[categories[row]]
            verdict = Verdict(
                level=self.policy.taxonomy.level_names[levels[row]],
                category=name,
                category_probabilities={name: float(probabilities[row, categories[row]])},
            )
            actions[row] = self.policy.action(verdict)
        return actions


def gravity(category: np.ndarray, level: np.ndarray, taxonomy: Taxonomy) -> tuple[bool, float]:
    """Orders the frames of an animation: one without numbers, one that the arg-max calls risky, the others; by risk."""
    if np.isnan(category).any() or np.isnan(level).any():
        return True, float("inf")
    clean, safe = taxonomy.category_names.index(CLEAN), taxonomy.level_names.index(SAFE)
    return bool(category.argmax() != clean and level.argmax() != safe), float(1 - category[clean])


def _best_but(probabilities: np.ndarray, left_out: int) -> np.ndarray:
    """(n,): the most probable column except one."""
    others = probabilities.copy()
    others[:, left_out] = -1
    return np.where(np.isnan(others).any(1), left_out, np.nan_to_num(others, nan=-1).argmax(1))


def counts(ids: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """How often each name occurs."""
    found = np.bincount(ids[ids >= 0], minlength=len(names))
    return dict(zip(names, found.tolist(), strict=True))
