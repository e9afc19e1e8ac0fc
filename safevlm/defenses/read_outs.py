"""What two read-outs, of the level and of the category, come to: a verdict, and how far one is from clean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from safevlm.types import Verdict

if TYPE_CHECKING:
    from torch import Tensor


def likeliest(level: Mapping[str, float], category: Mapping[str, float], source: str, broken: str) -> Verdict:
    """The arg-max of both tables of probabilities. ValueError, with the text `broken`: they are not finite.

    The trap: the arg-max of nan is the first label, and the first level is `safe`.
    """
    if not all(map(math.isfinite, (*level.values(), *category.values()))):
        raise ValueError(broken)
    return Verdict(
        level=max(level, key=level.__getitem__),
        category=max(category, key=category.__getitem__),
        level_probabilities=level,
        category_probabilities=category,
        source=source,
    )


def lead(logits: Tensor, clean: int) -> Tensor:
    """(b, labels) → (b,), by how much the likeliest risky label leads the clean one; with a gradient."""
    risky = [label for label in range(logits.shape[-1]) if label != clean]
    return logits[:, risky].float().amax(-1) - logits[:, clean].float()
