"""A vision tower trained against changed images: what moves, what the loss is, and what is left for others to load."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava_patch import parts
from safevlm.config import AdversarialSettings, Recipe, SafetyConfig
from safevlm.data.augment import Augmentation
from safevlm.data.records import RecordError, read_records
from safevlm.model import loading
from safevlm.model.checkpoint_folder import FINAL
from safevlm.training.robust_tower import FILE, PIXELS, ImageCollator, TowerLearner
from safevlm.training.run import train
from safevlm.training.stages import ROBUST_TOWER
from tests.training import workshop

NONE = SafetyConfig(projector="none", lm_tokens=0, head_tokens=0)
SETTINGS = AdversarialSettings(epsilon=16, steps=2, weight=3.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "base")
    workshop.save_rows(home / "data" / "rows.jsonl", workshop.rows(home / "data", 16))
    return home


def recipe(home: Path, out: Path, settings: AdversarialSettings = SETTINGS, **sections: Any) -> Recipe:
    given: dict[str, Any] = {
        "loss": {"lm": 0.0},
        "model": {"safety": NONE},
        "optim": {"epochs": 2, "lr": 1e-3},
        "run": {"save_steps": 1},
        **sections,
    }
    made = workshop.recipe(home / "base", home / "data" / "rows.jsonl", out, "robust_tower", **given)
    return dataclasses.replace(made, adversarial=settings)


@pytest.fixture(scope="module")
def run(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train(recipe(home, out))
    return out


def test_result_is_a_plain_model_of_which_the_tower_alone_has_moved(home: Path, run: Path) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (home / "base", run / FINAL))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("vision_tower" in name for name in moved)
    assert loading.load(run / FINAL).kind == "stock"


def test_stage_1_trains_on_the_result(home: Path, run: Path, tmp_path: Path) -> None:
    made = workshop.recipe(run / FINAL, home / "data" / "rows.jsonl", tmp_path, loss={"lm": 0.0})
    safety = dataclasses.replace(made.model.safety, lm_tokens=0)
    train(dataclasses.replace(made, model=dataclasses.replace(made.model, safety=safety)))
    loaded = loading.load(tmp_path / FINAL)
    tower = parts.tower_state(loaded.safe_llava)
    for name, weight in load_file(run / FINAL / FILE).items():
        assert name == "spread" or torch.equal(tower[name], weight)


def test_run_that_was_stopped_ends_as_one_that_was_not(home: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "again")
    again = tmp_path / "again"
    shutil.rmtree(again / FINAL)
    for later in sorted(again.glob("checkpoint-*"), key=lambda each: int(each.name.split("-")[1]))[1:]:
        shutil.rmtree(later)
    train(recipe(home, again))
    ends = [load_file(out / FINAL / FILE) for out in (run, again)]
    assert workshop.same_tensors(*ends)


def test_loss_is_the_distance_to_what_the_tower_said_before_in_units_of_its_spread(home: Path) -> None:
    model = loading.load(home / "base").safe_llava
    learner = TowerLearner(model)
    images = torch.rand(3, *model.pixel_shape)
    target = learner.target(images)
    assert learner(images, images, target).kept.abs().max() == 0
    with torch.no_grad():
        learner.tower.post_layernorm.weight.mul_(1.0)
        for weight in learner.tower.encoder.layers[0].mlp.parameters():
            weight.mul_(1.5)
    found = learner(images, images + 0.1, target)
    moved = learner.features(learner.tower, images)
    expected = (moved - target).square().mean((1, 2)) / learner.features(learner.before, images).var(0).mean()
    torch.testing.assert_close(found.kept, expected)
    assert (found.changed - found.kept).abs().min() > 0


FAINT = {"augment": ["contrast:20"], "augment_share": 1.0}


def test_images_come_as_the_recipe_changes_them(home: Path) -> None:
    loaded = loading.load(home / "base")
    records = read_records([home / "data" / "rows.jsonl"], loaded.safe_llava.config.taxonomy)[:4]
    made = recipe(home, home, data=FAINT)
    plain = ImageCollator(loaded.processor, loaded.safe_llava.slots, False)
    faint = replace(plain, augmentation=Augmentation.of(made, records, loaded.safe_llava.config.taxonomy))
    spread = [collate(records)[PIXELS].std((1, 2, 3)) for collate in (faint, plain)]
    assert (spread[0] < spread[1]).all()


def first_step(home: Path, out: Path, epsilon: float, data: dict[str, Any]) -> float:
    """How far the attack moves the features before anything was learned."""
    settings = AdversarialSettings(epsilon=epsilon, steps=2, weight=3.0)
    train(recipe(home, out, settings, data=data, optim={"max_steps": 1}))
    found: float = workshop.history(out / FINAL)[0]["loss_changed"]
    return found


def test_attack_starts_from_images_as_the_recipe_changes_them(home: Path, tmp_path: Path) -> None:
    plain, faint, near = (
        first_step(home, tmp_path / name, epsilon, data)
        for name, epsilon, data in (("plain", 16, {}), ("faint", 16, FAINT), ("near", 0.01, FAINT))
    )
    assert near < 1e-3 * faint  # next to nothing changed: the features are still those that they are compared with
    assert faint != plain


def test_changed_images_move_the_features_less_and_less(home: Path, tmp_path: Path) -> None:
    train(recipe(home, tmp_path, optim={"epochs": 30, "lr": 3e-3}, run={"save_steps": 1000}))
    moved = [line["loss_changed"] for line in workshop.history(tmp_path / FINAL) if "loss_changed" in line]
    assert sum(moved[-8:]) < 0.8 * sum(moved[:8])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"settings": AdversarialSettings(epsilon=0)}, "adversarial.epsilon"),
        ({"loss": {"lm": 1.0}}, "loss.lm"),
        ({"model": {"safety": SafetyConfig(projector="mlp", lm_tokens=0, head_tokens=0)}}, "model.safety"),
    ],
)
def test_recipe_that_it_cannot_work_with_is_named(
    change: dict[str, Any], told: str, home: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=told):
        ROBUST_TOWER.check(recipe(home, tmp_path, **change))


def test_record_without_an_image_is_named(home: Path, tmp_path: Path) -> None:
    rows = workshop.rows(tmp_path / "data", 8)
    rows[3].pop("image")
    file = workshop.save_rows(tmp_path / "data" / "rows.jsonl", rows)
    made = recipe(home, tmp_path / "out")
    with pytest.raises((RecordError, ValueError), match="rows.jsonl:4"):
        train(dataclasses.replace(made, data=dataclasses.replace(made.data, train=[str(file)])))
