"""Another family under DeepSpeed: two processes train what one with twice the batch trains, ZeRO-2 and ZeRO-3."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from safevlm.config import Grouping, Recipe
from safevlm.model import loading
from safevlm.model.checkpoint_folder import SAFETY_FILE
from safevlm.training.run import train
from tests.backbones import families, small_runs
from tests.training import launching, workshop

pytestmark = pytest.mark.slow

FAMILY = "qwen2_5_vl"
SAFETY = replace(families.SAFETY, projector_standardize=True)


def _recipe(home: Path, out: str, batch: int, by: Grouping) -> Recipe:
    made = small_runs.recipe(
        home,
        "stage1",
        home / "stock",
        out,
        safety=SAFETY,
        optim={"batch_size": batch, "max_grad_norm": 1.0},
        run={"log_steps": 1, "save_steps": 1, "keep": 9},
    )
    return replace(made, data=replace(made.data, group_by=by))


@pytest.mark.parametrize("launcher", ["torchrun", "zero2", "zero3"])
def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path, launcher: str) -> None:
    families.saved(FAMILY, tmp_path / "stock")
    small_runs.data(tmp_path)
    by: Grouping = "kind" if launcher == "zero3" else "none"  # ZeRO-3 does it unasked
    one = train(_recipe(tmp_path, "one", 2, by))
    two = launching.fork(launcher, _recipe(tmp_path, "two", 1, by), tmp_path)
    first, second = workshop.history(one), workshop.history(two)
    assert len(first) == len(second) >= 2
    for alone, together in zip(first, second, strict=True):
        for key in ("loss", "loss_lm", "loss_level", "loss_category"):
            assert together[key] == pytest.approx(alone[key], rel=1e-3), f"{key} changes with the number of processes"
    ours, theirs = load_file(one / SAFETY_FILE), load_file(two / SAFETY_FILE)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        difference = (tensor - theirs[name]).abs().max()
        assert difference < (1e-7 if "standardizer" in name else 1e-3), f"{name} differs by up to {difference:.1e}"
    assert loading.load(two).kind == "safety"
