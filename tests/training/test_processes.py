"""Two processes train what one process with twice the batch trains, by torchrun, ZeRO-2 and ZeRO-3."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from safevlm.config import Grouping, Recipe
from safevlm.model import loading
from safevlm.model.checkpoint_folder import ADAPTER_FILE, SAFETY_FILE
from safevlm.training.run import train
from tests.training import launching, workshop

pytestmark = pytest.mark.slow

CASES = (
    ("torchrun", "stage1", launching.fork),
    ("zero2", "stage1", launching.launch),
    ("zero3", "stage2", launching.fork),
    pytest.param("zero3", "stage2", launching.launch, marks=pytest.mark.thorough),
    pytest.param("torchrun", "stage1", launching.launch, marks=pytest.mark.thorough),
    pytest.param("zero2", "stage2", launching.fork, marks=pytest.mark.thorough),
    pytest.param("zero3", "stage1", launching.fork, marks=pytest.mark.thorough),
)
"""`launch`: by the launcher's own command, as a user starts them. That torchrun starts `safevlm` at all is seen where
an evaluation is spread."""
KEYS = ("loss", "loss_lm", "loss_level", "loss_category", "grad_norm")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `data/mixed.jsonl`, and a stage 1 by one process."""
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "base")
    workshop.save_rows(home / "data" / "mixed.jsonl", workshop.mixed_rows(home / "data"))
    train(_recipe(home, "stage1", home / "stage1", 2))
    return home


def _recipe(home: Path, stage: str, out: Path, batch: int, by: Grouping = "none") -> Recipe:
    """Ungrouped, with one record to a micro-batch: in most steps one process sees an image and the other none."""
    start = home / "base" if stage == "stage1" else home / "stage1"
    optim = {"batch_size": batch, "effective_batch": 8, "accumulation": None, "max_grad_norm": 1.0}
    data, run = {"group_by": by}, {"save_steps": 2}
    return workshop.recipe(start, home / "data" / "mixed.jsonl", out, stage, optim=optim, run=run, data=data)


def _weights(folder: Path, stage: str) -> dict[str, Tensor]:
    return load_file(folder / (SAFETY_FILE if stage == "stage1" else ADAPTER_FILE))


@pytest.mark.parametrize(("launcher", "stage", "start"), CASES)
def test_two_processes_equal_one_with_twice_the_batch(
    home: Path, tmp_path: Path, launcher: str, stage: str, start: Callable[[str, Recipe, Path], Path]
) -> None:
    """ZeRO-2 adds up buckets blindly: if two processes fill them in another order, weights get wrong gradients."""
    by = "kind" if launcher == "zero3" else "none"  # ZeRO-3 does it unasked; one process must see the same order
    one = train(_recipe(home, stage, tmp_path / "one", 2, by))
    two = start(launcher, _recipe(home, stage, tmp_path / "two", 1), tmp_path)
    first, second = workshop.history(one), workshop.history(two)
    assert len(first) == len(second) == 3
    for step, (alone, together) in enumerate(zip(first, second, strict=True)):
        for key in KEYS:
            assert together[key] == pytest.approx(alone[key], rel=1e-3), (
                f"update {step + 1}: {key} changes with the number of processes (base facts §4.1)"
            )
    ours, theirs = _weights(one, stage), _weights(two, stage)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        difference = (tensor - theirs[name]).abs().max()
        assert difference < 1e-4, f"{name} differs by up to {difference:.1e}"
    assert set(workshop.file_bytes(one)) == set(workshop.file_bytes(two)), "the result lacks files, or has too many"
    assert loading.load(two).kind == ("safety" if stage == "stage1" else "adapter")
    assert sorted(path.name for path in two.parent.iterdir()) == ["checkpoint-2", "checkpoint-3", "final"]
    _resume(launcher, _recipe(home, stage, tmp_path / "two", 1), tmp_path, stage)


def test_a_head_that_trains_alone_beside_lm_tokens_learns_the_same_in_two_processes(home: Path, tmp_path: Path) -> None:
    """Its loss reaches no LM token: the processes must not wait for a gradient of theirs."""
    made = (_recipe(home, "stage1", tmp_path / name, batch) for name, batch in (("one", 2), ("two", 1)))
    one, two = (replace(recipe, loss=replace(recipe.loss, lm=0.0)) for recipe in made)
    first, second = (_weights(folder, "stage1") for folder in (train(one), launching.fork("torchrun", two, tmp_path)))
    assert "safety_lm_tokens.latent" in first.keys() & second.keys()
    for name, tensor in first.items():
        assert (tensor - second[name]).abs().max() < 1e-4, f"{name} differs"


def test_one_process_goes_on_where_two_stopped(home: Path, tmp_path: Path) -> None:
    """Without DeepSpeed the optimiser's state is whole, so that any number of processes can go on from it."""
    two = launching.fork("torchrun", _recipe(home, "stage1", tmp_path / "two", 1), tmp_path)
    whole = _weights(two, "stage1")
    for name in ("final", "checkpoint-3"):
        shutil.rmtree(two.parent / name)
    again = _weights(train(_recipe(home, "stage1", tmp_path / "two", 1)), "stage1")  # the accumulation follows
    for name, tensor in whole.items():
        assert (tensor - again[name]).abs().max() < 1e-4, f"{name} differs"


def _resume(launcher: str, recipe: Recipe, folder: Path, stage: str) -> None:
    """Forgets what came after checkpoint-2 and goes on from there."""
    out = Path(recipe.run.out)
    whole = _weights(out / "final", stage)
    for name in ("final", "checkpoint-3"):
        shutil.rmtree(out / name)
    again = _weights(launching.fork(launcher, recipe, folder), stage)
    assert workshop.same_tensors(whole, again), "resuming in two processes changed the result"
