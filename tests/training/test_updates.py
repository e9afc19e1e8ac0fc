"""The published batch is kept on any number of processes, or it is an error that says what would go."""

from __future__ import annotations

from pathlib import Path

import pytest

from safevlm.__main__ import main
from safevlm.check import command
from safevlm.config import OptimConfig
from safevlm.training import provenance, updates
from safevlm.training.recipe import parse
from safevlm.usage import UsageError
from tests.training import workshop

RECIPES = Path(__file__).parents[2] / "safevlm" / "recipes"


@pytest.mark.parametrize("processes", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("size", ["7b", "13b"])
@pytest.mark.parametrize("way", ["stage1", "stage2", "refusal_lora"])
def test_a_published_batch_is_kept_by_any_number_of_processes(way: str, size: str, processes: int) -> None:
    optim = parse([f"llava{size}_{way}"]).optim
    assert updates.effective_batch(optim, processes) == 128
    assert updates.accumulation(optim, processes) == 128 // processes // optim.batch_size


@pytest.mark.parametrize(
    ("fields", "processes", "parts"),
    [
        ({"batch_size": 3}, 8, ("optim.effective_batch", "128", "8 processes", "possible sizes: 1, 2, 4, 8, 16")),
        ({"batch_size": 4}, 64, ("possible sizes: 1, 2",)),
        ({"batch_size": 2}, 6, ("6 processes", "1, 2, 4, 8, 16, 32, 64, 128", "126 or 132")),
        ({"effective_batch": 4, "batch_size": 1}, 8, ("1, 2, 4", "optim.effective_batch 8")),
        ({"effective_batch": 128, "accumulation": 4}, 8, ("optim.accumulation: 4", "64", "128")),
    ],
)
def test_a_batch_that_cannot_be_split_names_what_can(fields: dict[str, int], processes: int, parts: tuple[str]) -> None:
    with pytest.raises(UsageError) as error:
        updates.accumulation(OptimConfig(**fields), processes)
    for part in parts:
        assert part in str(error.value)


def test_accumulation_may_be_said_alone_or_in_agreement() -> None:
    """Old recipes say it alone, and mean that the batch grows with the processes."""
    alone = OptimConfig(batch_size=2, accumulation=8)
    assert [updates.effective_batch(alone, processes) for processes in (1, 8, 32)] == [16, 128, 512]
    both = OptimConfig(batch_size=2, accumulation=8, effective_batch=128)
    assert updates.accumulation(both, 8) == 8


@pytest.mark.parametrize(
    ("fields", "records", "processes", "expected"),
    [
        ({"accumulation": 2, "batch_size": 4, "epochs": 1}, 24, 1, 3),
        ({"accumulation": 2, "batch_size": 4, "epochs": 1}, 25, 1, 4),
        ({"accumulation": 2, "batch_size": 4, "epochs": 2.5}, 24, 1, 8),
        ({"effective_batch": 128, "epochs": 3}, 14_199, 8, 333),
        ({"effective_batch": 128, "epochs": 3}, 14_199, 32, 333),
        ({"max_steps": 7}, 24, 1, 7),
    ],
)
def test_updates_of_a_run(fields: dict[str, float], records: int, processes: int, expected: int) -> None:
    assert updates.in_all(OptimConfig(**fields), records, processes) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "effective batch 128 = 32 processes x 2 records x 2 steps"),
        (("--optim.batch_size", "1"), "effective batch 128 = 32 processes x 1 records x 4 steps"),
        (
            ("--optim.effective_batch", "null", "--optim.accumulation", "8"),
            "effective batch 512 = 32 processes x 2 records x 8 steps",
        ),
    ],
)
def test_check_tells_what_follows_for_the_stated_nodes(flags: tuple[str, ...], told: str) -> None:
    request = command.CheckRequest(RECIPES / "llava7b_stage1.yaml", gpus=8, nodes=4, recipe_flags=flags)
    (finding,) = [one for one in command.findings(request) if "effective batch" in one.title]
    assert finding.ok and told in finding.title
    assert ("grow with the processes" in finding.detail) == ("512" in told)


def test_check_refuses_a_batch_that_the_stated_nodes_cannot_keep() -> None:
    request = command.CheckRequest(RECIPES / "llava7b_stage1.yaml", gpus=6, nodes=1)
    bad = [one.title for one in command.findings(request) if one.mark == "✗" and "effective_batch" in one.title]
    assert len(bad) == 1 and "possible numbers of processes" in bad[0]


def test_a_warm_up_without_end_is_wrong_usage_before_training_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """24 records in 3 updates: known when the records are read."""
    base = workshop.stock_folder(tmp_path / "base")
    records = workshop.save_rows(tmp_path / "train.jsonl", workshop.rows(tmp_path))
    recipe = workshop.recipe(base, records, tmp_path / "out", optim={"warmup_steps": 3})
    (tmp_path / "recipe.yaml").write_text(provenance.recipe_yaml(recipe), encoding="utf-8")
    capsys.readouterr()
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 2
    assert "optim.warmup_steps: 3" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    assert main(["train", str(tmp_path / "recipe.yaml"), "--optim.effective_batch", "16"]) == 2
    assert "optim.accumulation" in capsys.readouterr().err.splitlines()[-1]
