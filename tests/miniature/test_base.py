"""The shipped base has the disease, or every number measured on it proves nothing."""

import json
from pathlib import Path

import pytest

from safevlm.data.made_by import digest
from safevlm.engine import Engine
from safevlm.miniature import properties
from safevlm.miniature.world import SEED

BASE = Path(__file__).parents[2] / "checkpoints" / "miniature"
counts = pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.thorough)])
"""Of cases: the shipped weights do not change, and what changes around them shows in few."""


@pytest.mark.slow
@counts
def test_base_shows_all_four_properties_on_fresh_scenes(count: int):
    shares = properties.measure(Engine.load(BASE, defense="none", device="cpu"), count)
    short = {name: share for name, share in shares.items() if share < properties.AT_LEAST[name]}
    assert not short, f"the shipped base lacks {short}; needed: {properties.AT_LEAST}"


@pytest.mark.slow
@counts
def test_base_bears_changed_images(count: int) -> None:
    """A crop of 5 % cost an earlier base half of its right answers, and every number on changed images with it."""
    shares = properties.utility(Engine.load(BASE, defense="none", device="cpu"), count)
    short = {name: share for name, share in shares.items() if share < properties.UTILITY_AT_LEAST}
    assert not short, f"benign requests answered right: {short}; needed: {properties.UTILITY_AT_LEAST}"


def test_base_tells_what_made_it() -> None:
    record = json.loads((BASE / "run.json").read_text(encoding="utf-8"))
    digests = record["made_by"]["digests"]
    assert record["seed"] == SEED and digests == {"model": digest(BASE), "clip": digest(BASE / "clip")}


def test_shipped_base_is_at_most_15_megabytes():
    assert sum(file.stat().st_size for file in BASE.rglob("*") if file.is_file()) <= 15_000_000


def test_base_is_stock_llava_and_its_tower_is_the_shipped_clips():
    import torch
    from transformers import CLIPModel, LlavaForConditionalGeneration

    llava, info = LlavaForConditionalGeneration.from_pretrained(BASE, output_loading_info=True)
    clip = CLIPModel.from_pretrained(BASE / "clip")
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, weight in clip.vision_model.state_dict().items():
        assert torch.equal(weight, llava.model.vision_tower.state_dict()[name]), f"{name} differs"
