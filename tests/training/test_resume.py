"""Which checkpoint a run goes on from, and when it refuses to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safevlm.training import resume
from tests.training import workshop


def _newest(out: Path, processes: int, **run: Any) -> str | None:
    recipe = workshop.recipe(out / "base", out / "x.jsonl", out, run=run)
    return resume.newest(recipe, processes)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run of two processes with two checkpoints."""
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "run.json").write_text(json.dumps({"processes": 2}))
    return tmp_path


def test_newest_is_by_number_not_by_spelling(out: Path) -> None:
    assert _newest(out, 2) == str(out / "checkpoint-10")


def test_nothing_to_resume(out: Path, tmp_path: Path) -> None:
    assert _newest(out, 2, resume=False) is None
    assert _newest(tmp_path / "gone", 2) is None


def test_deepspeed_under_another_number_of_processes_says_why_not(out: Path) -> None:
    with pytest.raises(ValueError) as error:
        _newest(out, 4, deepspeed="zero2.json")
    for part in (str(out / "checkpoint-10"), "2 processes", "has 4", "--model.path", "--run.out"):
        assert part in str(error.value)
    assert _newest(out, 2, deepspeed="zero2.json")


def test_torchrun_may_go_on_with_another_number_and_is_told(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _newest(out, 1) == str(out / "checkpoint-10")
    assert "another size" in caplog.text


def test_a_run_is_done_when_its_last_step_is_saved() -> None:
    recipe = workshop.recipe(Path("base"), Path("x"), Path("out"), optim={"max_steps": 10})
    assert resume.is_done("out/checkpoint-10", recipe) and not resume.is_done("out/checkpoint-9", recipe)
    endless = workshop.recipe(Path("base"), Path("x"), Path("out"))
    assert not resume.is_done("out/checkpoint-10", endless)
