"""kill -9 at random moments: each time the run goes on from its newest checkpoint and ends as if undisturbed."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from safevlm.config import Recipe
from safevlm.model import loading
from safevlm.model.checkpoint_folder import SAFETY_FILE
from safevlm.training.run import train
from safevlm.training.trainer import SafeTrainer
from tests import forked, patience
from tests.training import workshop

pytestmark = pytest.mark.slow

KILLS, EPOCHS, SAVE_STEPS = 3, 12, 2
UPDATES = 3 * EPOCHS
"""24 records, 8 to an update; enough that a fast machine is still at it when the last kill comes."""
STEPS, SECONDS = 4, 0.1
"""A life has at most so many steps, and so long until it ends."""


def _train(recipe: Recipe, journal: Path) -> None:
    """Trains, and notes every finished update at once."""
    real = SafeTrainer.log

    def log(trainer: SafeTrainer, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            with journal.open("a", encoding="utf-8") as file:
                file.write(f"{trainer.state.global_step}\n")
        real(trainer, logs, start_time)

    SafeTrainer.log = log  # type: ignore[method-assign]  # a process of its own: nothing to undo
    train(recipe)


def _checkpoints(out: Path) -> dict[int, Path]:
    return {int(path.name.split("-")[1]): path for path in out.glob("checkpoint-*")}


def _wait_for_steps(process: forked.Forked, journal: Path, count: int) -> None:
    patience.wait_until(lambda: len(_steps(journal)) >= count, process.pid, lambda: process.poll() is None)


def _steps(journal: Path) -> list[int]:
    return [int(line) for line in journal.read_text().splitlines()] if journal.is_file() else []


def test_every_kill_is_gone_on_from(tmp_path: Path) -> None:
    workshop.stock_folder(tmp_path / "base")
    records = workshop.save_rows(tmp_path / "data" / "mixed.jsonl", workshop.mixed_rows(tmp_path / "data"))
    wanted = {"optim": {"epochs": EPOCHS}, "run": {"save_steps": SAVE_STEPS, "keep": 2}}
    whole = train(workshop.recipe(tmp_path / "base", records, tmp_path / "whole", **wanted))
    recipe = workshop.recipe(tmp_path / "base", records, tmp_path / "out", **wanted)
    out, journal, chance = tmp_path / "out", tmp_path / "journal", random.Random(0)
    newest = 0
    for kill in range(KILLS):
        begun = len(_steps(journal))
        process = forked.Forked(_train, recipe, journal)
        _wait_for_steps(process, journal, begun + chance.randint(1, STEPS))
        time.sleep(chance.uniform(0.0, SECONDS))
        assert process.poll() is None, f"kill {kill} came too late; raise EPOCHS"
        process.kill()
        process.wait()
        steps, found = _steps(journal), _checkpoints(out)
        assert steps[begun] == newest + 1, f"kill {kill}: the run went on from another step than its newest checkpoint"
        assert max(found, default=0) >= steps[-1] - SAVE_STEPS, f"kill {kill} lost more than the steps since the save"
        newest = max(found, default=0)
        for step, folder in found.items():
            assert loading.load(folder).kind == "safety", f"kill {kill}: {folder.name} is not complete"
            assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == step
    assert 0 < newest < UPDATES, "the kills must fall inside the run"
    again = train(recipe)
    assert workshop.same_tensors(load_file(whole / SAFETY_FILE), load_file(again / SAFETY_FILE))
    assert [name for name in os.listdir(out) if name.startswith(".")] == [], "remains of killed saves"
