"""What a run starts from: taxonomy and policy of its recipe, and nothing that belongs to weights it will change."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from safevlm.config import Recipe
from safevlm.model import loading, saving
from safevlm.training import start
from tests import tiny
from tests.training import workshop

CALIBRATED = {"levels": {"careful": "allow"}, "calibration": {"safety-head": {"risk": 0.25}}}


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ours with a policy that `analyze calibration --write` has been at."""
    home = tmp_path_factory.mktemp("calibrated")
    loaded = loading.load(workshop.stock_folder(home / "base"), safety=tiny.safety_config())
    loaded.model.config.policy = CALIBRATED
    (home / "safety").mkdir()
    saving.save(loaded, loaded.model, home / "safety")
    return home / "safety"


def _recipe(model: Path, stage: str, **sections: Any) -> Recipe:
    return workshop.recipe(model, Path("x.jsonl"), Path("out"), stage, **sections)


def test_training_the_head_drops_its_calibration_and_says_so(
    calibrated: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = start.load(_recipe(calibrated, "stage1"))
    assert loaded.safe_llava.config.policy == {"levels": CALIBRATED["levels"]}
    assert "calibration" in caplog.text


def test_stage2_leaves_the_head_and_its_calibration_alone(calibrated: Path) -> None:
    assert start.load(_recipe(calibrated, "stage2")).safe_llava.config.policy == CALIBRATED


def test_head_only_training_leaves_the_llm_on_the_disk(calibrated: Path) -> None:
    model = start.load(_recipe(calibrated, "stage1", loss={"lm": 0.0})).safe_llava
    assert len(model.model.language_model.layers) == 0
    assert model.config.text_config.num_hidden_layers == workshop.LAYERS, "what is saved must describe the whole model"
    with pytest.raises(ValueError, match="without its LLM"):
        model(**tiny.batch([0], model.slots))
