"""Feature → families that tests show it for. Tests take their families from here, and the manual its table."""

from __future__ import annotations

from safevlm.backbones.table import BACKBONES

EVERY = tuple(BACKBONES)
FEATURES: dict[str, tuple[str, ...]] = {
    "one pass, batches, several images": EVERY,
    "head-only stage 1": EVERY,
    "stage 1 with LM tokens": EVERY,
    "stage 2, merge": EVERY,
    "stock export": EVERY,
    "virtual tokens": EVERY,
    "policies, stacks, fusion, self-check, ETA": EVERY,
    "textual security tensor": EVERY,
    "check, audit, chat, server": EVERY,
    "SafeCLIP by its own tower": ("gemma3", "llava_next", "llava_onevision"),
    "SafeCLIP by a companion": EVERY,
}


def rows() -> list[str]:
    """The manual's table, line by line."""
    names = list(FEATURES)
    head = ["| family | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    marks = [["✓" if family in FEATURES[name] else "–" for name in names] for family in EVERY]
    return [*head, *(f"| `{family}` | " + " | ".join(own) + " |" for family, own in zip(EVERY, marks, strict=True))]
