"""How long a record may be."""

from __future__ import annotations

from safevlm.backbones import config_facts
from safevlm.config import Recipe
from safevlm.model.safe_llava import SafeLlavaConfig


def longest(recipe: Recipe, config: SafeLlavaConfig) -> int:
    """Tokens that a record may have: `data.max_length`, and never more than the model has positions for."""
    return min(recipe.data.max_length, config_facts.positions(config))
