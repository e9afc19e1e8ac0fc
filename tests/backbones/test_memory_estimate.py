"""What `check` reckons a family's memory with: the kind of its safety projector and the size of its records' images."""

from __future__ import annotations

from pathlib import Path

import pytest

from safevlm.check import resources
from safevlm.check.plan import RunPlan
from safevlm.model import families as kinds
from tests.backbones import families, small_runs


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_the_estimate_is_told_the_projector_and_how_many_tokens_an_image_has(family: str, tmp_path: Path) -> None:
    small_runs.data(tmp_path)
    plan = RunPlan(small_runs.recipe(tmp_path, "stage1", families.saved(family, tmp_path / "base"), "out"))
    shape, load = resources.shape_of(plan), resources.load_of(plan)
    config = plan.checkpoint.config
    assert shape.projector == config.safety_config.projector == "resampler"
    assert shape.read_width == kinds.sizes_of(config).lm_width
    assert not shape.keeps_states, "a family that reads the tower's last layer"
    seen = [row.image_tokens for row in plan.sample.rows if len(row.record.images) == 1]
    assert load.image_tokens == max(seen) - config.safety_config.lm_tokens < max(seen)
