"""Other families under DeepSpeed: two processes train what one with twice the batch trains, ZeRO-2 and ZeRO-3."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from safevlm.config import Grouping, LoraSettings, Recipe
from safevlm.model import loading
from safevlm.model.checkpoint_folder import ADAPTER_FILE, SAFETY_FILE
from safevlm.training.run import train
from tests.backbones import families, small_runs
from tests.training import launching, workshop

pytestmark = pytest.mark.slow

CASES = (
    ("torchrun", "stage1", "qwen2_5_vl"),
    ("zero2", "stage1", "qwen2_5_vl"),
    ("zero3", "stage2", "qwen3_vl"),
    ("zero3", "stage1", "gemma3"),
    ("zero2", "stage2", "gemma3"),
    ("zero3", "stage1", "llava_next"),
    pytest.param("zero3", "stage2", "idefics3", marks=pytest.mark.thorough),
)
"""Flattened patches and squares with both stages and both kinds of ZeRO; tiles with ZeRO-3, stage 2 thorough."""
KEYS = ("loss", "loss_lm", "loss_level", "loss_category")
SAFETY = replace(families.SAFETY, projector_standardize=True)


def recipe(home: Path, stage: str, out: str, batch: int, by: Grouping) -> Recipe:
    """Of `home/stock` or `home/guarded`, over `home/data.json`."""
    made = small_runs.recipe(
        home,
        stage,
        home / ("stock" if stage == "stage1" else "guarded"),
        out,
        safety=SAFETY,
        optim={"batch_size": batch, "max_grad_norm": 1.0},
        run={"log_steps": 1, "save_steps": 1, "keep": 9},
        **({"lora": LoraSettings(r=2, alpha=4, dropout=0)} if stage == "stage2" else {}),
    )
    return replace(made, data=replace(made.data, group_by=by))


def prepare(home: Path, stage: str, family: str) -> None:
    """What a recipe starts from: a stock folder; for a LoRA, one with untrained safety modules."""
    stock = families.saved(family, home / "stock")
    small_runs.data(home)
    if stage == "stage2":
        torch.manual_seed(1)
        loaded = loading.load(stock, safety=families.SAFETY)
        for part in (loaded.model, loaded.processor):
            part.save_pretrained(home / "guarded")


@pytest.mark.parametrize(("launcher", "stage", "family"), CASES)
def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path, launcher: str, stage: str, family: str) -> None:
    prepare(tmp_path, stage, family)
    by: Grouping = "kind" if launcher == "zero3" else "none"  # ZeRO-3 does it unasked
    one = train(recipe(tmp_path, stage, "one", 2, by))
    two = launching.fork(launcher, recipe(tmp_path, stage, "two", 1, by), tmp_path)
    first, second = workshop.history(one), workshop.history(two)
    assert len(first) == len(second) >= 2
    for alone, together in zip(first, second, strict=True):
        for key in KEYS:
            assert together[key] == pytest.approx(alone[key], rel=1e-3), f"{key} changes with the number of processes"
    file = SAFETY_FILE if stage == "stage1" else ADAPTER_FILE
    ours, theirs = load_file(one / file), load_file(two / file)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        difference = (tensor - theirs[name]).abs().max()
        assert difference < (1e-7 if "standardizer" in name else 2e-3), f"{name} differs by up to {difference:.1e}"
    assert loading.load(two).kind == ("safety" if stage == "stage1" else "adapter")
