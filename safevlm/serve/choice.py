"""A loaded model behind another defense or policy, as a person chooses it."""

from __future__ import annotations

from pathlib import Path

from safevlm.defenses import Defense
from safevlm.engine import Engine


def behind(engine: Engine, defense: str, policy: str | Path | None, *, is_new: bool = True) -> Engine:
    """ValueError: that cannot be, or the policy would change nothing. `is_new`: whether the policy was chosen just now;
    one that was there before may lie idle behind a defense that never looks."""
    chosen = engine.behind(defense, policy)
    if is_new and policy is not None and type(chosen.defense) is Defense:
        raise ValueError(f"policy {policy}: no effect, since defense none never looks; first take one that looks")
    return chosen
