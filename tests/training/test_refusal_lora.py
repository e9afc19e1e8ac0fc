"""Fine-tuning on refusals, the baseline without any safety module: the same path, and nothing of ours in the result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from safevlm.config import Recipe, SafetyConfig
from safevlm.data import chat
from safevlm.engine import Engine
from safevlm.model import loading
from safevlm.model.checkpoint_folder import FINAL, SAFETY_FILE, CheckpointError
from safevlm.training import merge
from safevlm.training.recipe import parse
from safevlm.training.run import train
from safevlm.types import Request
from tests import tiny
from tests.training import workshop

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[2] / "safevlm" / "recipes"
BARE = SafetyConfig(**tiny.BARE)
QUESTION = "What is in the picture?"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` (stock), `data`, and `run`, a LoRA trained on them; some records have no image, some no label."""
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "base")
    (home / "data").mkdir()
    data = workshop.save_rows(home / "data" / "train.jsonl", workshop.mixed_rows(home / "data"))
    train(_recipe(home, data, home / "run"))
    return home


def _recipe(home: Path, data: Path, out: Path) -> Recipe:
    return workshop.recipe(home / "base", data, out, "stage2", model={"path": str(home / "base"), "safety": BARE})


def _logits(loaded: loading.Loaded) -> torch.Tensor:
    model = loaded.safe_llava
    ids = torch.tensor([chat.prompt_ids(loaded.processor, Request(QUESTION, images=("",)), model.slots)])
    with torch.no_grad():
        return loaded.model(input_ids=ids, pixel_values=tiny.pixels(1, size=workshop.IMAGE_SIZE)).logits


def test_nothing_of_ours_is_added_and_only_the_lora_trains(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = workshop.watch(monkeypatch)
    train(_recipe(home, home / "data" / "train.jsonl", home / "watched"))
    changed = trainers[0].changed()
    assert changed and all(".lora_" in name for name in changed)
    assert len(changed) == workshop.LAYERS * workshop.PROJECTIONS * 2
    assert not any("safety_" in name for name in trainers[0].before), "no safety module, frozen or not"


def test_result_is_complete_though_it_holds_no_safety_weights(home: Path) -> None:
    final = home / "run" / FINAL
    assert load_file(final / SAFETY_FILE) == {}
    loaded = loading.load(home / "run")
    assert (loaded.kind, loaded.ours) == ("adapter", {})
    assert loaded.safe_llava.slots == workshop.PATCHES, "no room for tokens that do not exist"
    assert not torch.equal(_logits(loaded), _logits(loading.load(home / "base"))), "the LoRA changes nothing"


def test_lost_safety_file_is_still_an_error(home: Path, tmp_path: Path) -> None:
    """An empty file says that there are no modules; none says that the checkpoint is incomplete."""
    shutil.copytree(home / "run" / FINAL, tmp_path / "copy")
    (tmp_path / "copy" / SAFETY_FILE).unlink()
    with pytest.raises(CheckpointError, match="missing; the checkpoint is incomplete"):
        loading.load(tmp_path / "copy")


def test_merged_folder_stands_alone(home: Path, tmp_path: Path) -> None:
    merged = merge.fold(str(home / "run"), tmp_path / "merged")
    alone = loading.load(tmp_path / "merged")
    assert merged.difference < 1e-5 and alone.kind == "full"
    torch.testing.assert_close(_logits(alone), _logits(loading.load(home / "run")), rtol=0, atol=1e-4)


def test_engine_serves_it_bare(home: Path) -> None:
    engine = Engine.load(home / "run", device="cpu")
    assert engine.defense.name == "none", "there is no head that could guard"
    assert engine.reply(Request(QUESTION)).refused_by == ""
    with pytest.raises(ValueError, match="no safety head"):
        Engine.load(home / "run", defense="safety-head", device="cpu")


@pytest.mark.parametrize("size", ["llava7b", "llava13b", "miniature"])
def test_shipped_recipes_are_stage_2_without_the_modules(size: str) -> None:
    """So that two rows of a table differ in the modules and in nothing else."""
    recipe = parse([str(RECIPES / f"{size}_refusal_lora.yaml")])
    assert (recipe.model.safety.projector, recipe.model.safety.lm_tokens, recipe.model.safety.head_tokens) == (
        "none",
        0,
        0,
    )
    mine, theirs = (
        yaml.safe_load((RECIPES / f"{size}_{name}.yaml").read_text(encoding="utf-8"))
        for name in ("refusal_lora", "stage2")
    )
    for table in (mine, theirs):
        del table["model"], table["run"]["out"]
    assert mine == theirs
