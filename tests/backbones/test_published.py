"""The recipes on the published models' real shapes, on the meta device; the manual states what they train."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from safevlm.backbones.published import PUBLISHED, config_of
from safevlm.model import families as classes
from safevlm.model.safety_modules import is_safety_name
from safevlm.training.prepare import prepare, trainable
from safevlm.training.recipe import parse
from safevlm.training.stages import stage_of

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
RECIPES = ("vlm_stage1_head_only", "vlm_stage1", "vlm_stage2")


@functools.cache
def _trained(name: str, recipe_name: str) -> tuple[int, int]:
    """Weights in all but ours, and weights that the recipe trains."""
    recipe = parse([recipe_name])
    stock = config_of(PUBLISHED[name])
    safety = parse(["vlm_stage1"]).model.safety if recipe.stage == "stage2" else recipe.model.safety
    config = classes.classes_of(stock).config.from_stock(stock, safety)
    with torch.device("meta"):
        model = classes.classes_of(stock).model(config)
        sizes = {path: weight.numel() for path, weight in model.named_parameters()}
        prepared = prepare(model, stage_of(recipe), recipe)
    return sum(size for path, size in sizes.items() if not is_safety_name(path)), sum(trainable(prepared).values())


def _row(name: str) -> str:
    counts = [_trained(name, recipe) for recipe in RECIPES]
    cells = [f"{counts[0][0] / 1e9:.2f}", *(f"{trained / 1e6:.1f}" for _, trained in counts)]
    return f"| {name} | `{PUBLISHED[name].family}` | " + " | ".join(cells) + " |"


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_fit_the_published_shapes_and_the_manual_says_what_they_train(name: str) -> None:
    stocks, _ = _trained(name, "vlm_stage1")
    assert stocks / 1e9 == pytest.approx(PUBLISHED[name].billions, rel=0.02)
    assert _row(name) in PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    print("\n".join(map(_row, PUBLISHED)))
