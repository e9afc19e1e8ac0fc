"""Adversarial training of a head on other families: where an image is one tensor of pixels; else it is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from safevlm.backbones.image_inputs import ImageInputs
from safevlm.backbones.table import BACKBONES
from safevlm.check import changed_images
from safevlm.check.lazy_parts import run
from safevlm.check.plan import RunPlan
from safevlm.config import (
    AdversarialSettings,
    DataConfig,
    LossWeights,
    ModelConfig,
    OptimConfig,
    Recipe,
    RunConfig,
)
from safevlm.training import adversarial
from safevlm.training.adversarial import AdversarialTrainer, pixel_scale
from safevlm.training.run import train
from tests.backbones import families
from tests.backbones.small_runs import data as _data

DENSE = ("gemma3", "paligemma")
SAFETY = dataclasses.replace(families.SAFETY, lm_tokens=0)


def _recipe(family: str, home: Path) -> Recipe:
    return Recipe(
        "stage1",
        ModelConfig(str(families.saved(family, home / "base")), SAFETY),
        DataConfig([str(_data(home))], augment=["rotate", "mosaic"]),
        RunConfig(str(home / "out"), device="cpu", log_steps=1),
        loss=LossWeights(0, 1, 1),
        adversarial=AdversarialSettings(epsilon=8, steps=2, ramp=0),
        optim=OptimConfig(lr=1e-3, epochs=1, batch_size=4, effective_batch=4, warmup_steps=0),
    )


@families.each(DENSE)
@pytest.mark.slow
def test_changed_images_reach_the_head(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: list[tuple[ImageInputs, ImageInputs]] = []

    class Watched(AdversarialTrainer):
        def _changed(self, model: Any, inputs: dict[str, Any]) -> Any:
            pairs.append((inputs["pixel_values"], super()._changed(model, inputs)))
            return pairs[-1][1]

    monkeypatch.setattr(adversarial, "AdversarialTrainer", Watched)
    train(_recipe(family, tmp_path))
    assert pairs
    for clean, changed in pairs:
        for one, other in zip(clean, changed, strict=True):
            moved = (other.tensors["pixel_values"] - one.tensors["pixel_values"]).abs()
            assert moved.max() > 0 and one.placeholder == other.placeholder


@families.each([family for family in BACKBONES if family not in DENSE])
def test_pixels_that_are_no_image_are_refused_by_the_key(family: str) -> None:
    with pytest.raises(ValueError, match=r"adversarial\.epsilon.*not one \(3, height, width\)"):
        pixel_scale(families.stock(family)[1])


def test_check_and_start_refuse_it_alike(tmp_path: Path) -> None:
    recipe = _recipe("qwen3_vl", tmp_path)
    (finding,) = run((("adversarial.epsilon", changed_images.attack),), RunPlan(recipe))
    assert not finding.ok and "adversarial.epsilon" in finding.title
    with pytest.raises(ValueError, match=r"adversarial\.epsilon"):
        train(recipe)
    assert not (tmp_path / "out" / "final").exists()


def test_check_says_what_an_attack_costs(tmp_path: Path) -> None:
    (finding,) = run((("adversarial.epsilon", changed_images.attack),), RunPlan(_recipe("gemma3", tmp_path)))
    assert finding.ok and "2 times" in finding.title
