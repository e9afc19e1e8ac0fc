"""A folder that a run has used: gone on with, refused, or moved aside, by the command itself."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed
import yaml

from safevlm.__main__ import main
from safevlm.config import Recipe
from safevlm.model import saving
from safevlm.model.checkpoint_folder import CheckpointError
from safevlm.training import processes
from safevlm.training.provenance import recipe_yaml
from safevlm.training.run import train
from safevlm.training.stage import Stage, StageRun
from tests import forked
from tests.holding import holding
from tests.training import workshop

FITTED: list[Path] = []
"""Folders that the stage below has written."""


def _fit(run: StageRun) -> None:
    FITTED.append(run.folder)
    (run.folder / "learned.txt").write_text(str(run.recipe.optim.lr))


FITS = Stage("fits", "a file", fit=_fit)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, and `data/mixed.jsonl`."""
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "base")
    workshop.save_rows(home / "data" / "mixed.jsonl", workshop.mixed_rows(home / "data", 8))
    return home


def _recipe(home: Path, out: Path, stage: str = "stage1", **sections: dict[str, Any]) -> Recipe:
    sections["loss"] = {"lm": 0.0} if stage == "stage1" else {}
    return workshop.recipe(home / "base", home / "data" / "mixed.jsonl", out, stage, **sections)


@pytest.fixture(scope="module")
def used(home: Path) -> Path:
    """A run of one update. Read only."""
    train(_recipe(home, home / "used"))
    return home / "used"


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`safevlm train` of a recipe: exit code, and what it said on stderr."""

    def command(recipe: Recipe, *flags: str) -> tuple[int, str]:
        capsys.readouterr()  # what came before
        file = tmp_path / "recipe.yaml"
        file.write_text(recipe_yaml(recipe), encoding="utf-8")
        return main(["train", str(file), *flags]), capsys.readouterr().err

    return command


def test_another_recipe_ends_in_one_line_and_changes_nothing_until_it_is_moved_aside(
    home: Path, used: Path, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(used, out)
    before = workshop.file_bytes(out)
    code, said = command(_recipe(home, out), "--optim.lr", "0.5", "--run.seed", "7")
    assert code == 1 and len(said.strip().splitlines()) == 1 and "Traceback" not in said
    for part in ("optim.lr 0.003 -> 0.5", "run.seed 256 -> 7", "--run.resume false", "--run.out"):
        assert part in said
    assert workshop.file_bytes(out) == before
    code, _ = command(_recipe(home, out), "--optim.lr", "0.5", "--run.resume", "false")
    after = workshop.file_bytes(out)
    assert code == 0 and yaml.safe_load(after["final/recipe.yaml"])["optim"]["lr"] == 0.5
    kept = {name.removeprefix("earlier-1/"): text for name, text in after.items() if name.startswith("earlier-1/")}
    assert kept == before, "the earlier result is whole, and where the message said"


def test_a_longer_run_goes_on(home: Path, used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    shutil.copytree(used, out)
    trainers = workshop.watch(monkeypatch)
    train(_recipe(home, out, optim={"epochs": 2}, run={"log_steps": 2, "save_steps": 1, "keep": 1}))
    assert len(trainers[0].fed) == 2, "one update of two steps was left to do"
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-2", "final"]


def test_a_result_without_its_checkpoints_is_not_made_again(home: Path, used: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(used / "final", out / "final")
    before = workshop.file_bytes(out)
    train(_recipe(home, out))
    assert workshop.file_bytes(out) == before
    for sections, told in (({"optim": {"epochs": 2}}, "cannot be made longer"), ({"run": {"seed": 1}}, "run.seed")):
        with pytest.raises(ValueError, match=told):
            train(_recipe(home, out, **sections))
    assert workshop.file_bytes(out) == before


def test_a_stage_that_trains_by_itself_keeps_its_result_too(home: Path, tmp_path: Path) -> None:
    out, name = tmp_path / "out", f"{__name__}:FITS"
    FITTED.clear()
    train(_recipe(home, out, name))
    train(_recipe(home, out, name))
    assert len(FITTED) == 1, "the same recipe a second time: it is done"
    with pytest.raises(ValueError, match="optim.lr 0.003 -> 0.5"):
        train(_recipe(home, out, name, optim={"lr": 0.5}))
    train(_recipe(home, out, name, optim={"lr": 0.5}, run={"resume": False}))
    assert (out / "final" / "learned.txt").read_text() == "0.5"
    assert (out / "earlier-1" / "final" / "learned.txt").read_text() == "0.003"


def test_the_second_run_in_a_folder_is_refused_at_its_start(
    home: Path, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    out = tmp_path / "out"
    with holding(out / processes.LOCK) as holder:
        code, said = command(_recipe(home, out))
        assert code == 1 and len(said.strip().splitlines()) == 1
        assert f"process {holder.pid} on " in said and str(out) in said and "--run.out" in said
        assert [path.name for path in out.iterdir()] == [".run.lock"]
    assert command(_recipe(home, out))[0] == 0, "a killed run locks nobody out"
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-1", "final"]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "safety.safetensors"])
def test_a_damaged_file_of_a_checkpoint_is_one_line_that_names_it(
    home: Path, used: Path, tmp_path: Path, command: Callable[..., tuple[int, str]], name: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(used, out)
    file = out / "checkpoint-1" / name
    file.write_bytes(file.read_bytes()[:100])
    code, said = command(_recipe(home, out, optim={"epochs": 2}))
    assert code == 1 and "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert str(out / "checkpoint-1") in last and "remove this folder" in last


def test_a_full_disk_ends_a_run_with_one_line_and_leaves_nothing_half_written(
    home: Path, used: Path, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(used, out)
    before = workshop.file_bytes(out)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limit[1]))
    try:
        code, said = command(_recipe(home, out, optim={"epochs": 2}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    last = said.strip().splitlines()[-1]
    assert code == 1 and "Traceback" not in said
    assert str(out / "checkpoint-2") in last and "cannot be written" in last and "are free" in last
    assert workshop.file_bytes(out) == before and {path.name for path in out.iterdir()} == {"checkpoint-1", "final"}


def test_a_checkpoint_that_is_refused_says_what_to_do(
    home: Path, used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(used, out)

    def refuse(*given: Any, **options: Any) -> None:
        raise CheckpointError("safety_head.level.weight is not a number")

    monkeypatch.setattr(saving, "save", refuse)
    with pytest.raises(CheckpointError) as error:
        train(_recipe(home, out, optim={"epochs": 2}))
    for part in ("is not a number", str(out / "checkpoint-1"), "optim.lr", "--run.resume false"):
        assert part in str(error.value)
    assert {path.name for path in out.iterdir()} == {"checkpoint-1", "final"}


def _works(out: Path) -> None:
    torch.distributed.init_process_group("gloo")
    try:
        with processes.only_run(out, torch.distributed.get_rank(), 2):
            torch.distributed.barrier()
            print(f"held {(out / processes.LOCK).exists()}")
            torch.distributed.barrier()
    except ValueError as error:
        print(f"refused {error}")
    torch.distributed.destroy_process_group()


def _together(out: Path, folder: Path) -> list[str]:
    """The last line of two processes that a launcher has started in one folder."""
    return [said.splitlines()[-1] for said in forked.together(2, _works, [out], folder)]


@pytest.mark.slow
def test_all_processes_of_a_run_agree_whether_the_folder_is_theirs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _together(out, tmp_path) == ["held True"] * 2
    assert not out.exists(), "the first process took the lock and its empty folder away"
    with holding(out / processes.LOCK) as holder:
        first, second = _together(out, tmp_path)
        assert first == second and first.startswith("refused ") and f"process {holder.pid} on " in first
