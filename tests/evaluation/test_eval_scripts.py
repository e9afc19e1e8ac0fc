"""The evaluation's shell scripts: what they print is what they run, and no suite is left out in silence."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from safevlm.miniature import layouts
from safevlm.training.recipe import parse
from safevlm.training.stages import stage_of
from tests.evaluation.command import parsed
from tests.evaluation.world_of_runs import write_suite

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "checkpoints" / "miniature")
OURS = ("DEFENSES", "JUDGE", "GPUS", "POLICY", "LIMIT", "BATCH_SIZE", "PARTIAL", "SUITE", "SUITES", "DRY_RUN")


def run(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in OURS}
    return subprocess.run(
        ["bash", str(ROOT / "eval" / script), *words],
        cwd=ROOT,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def printed(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """The commands of a dry run."""
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith(("safevlm", "torchrun"))]
    return [words[words.index("eval") + 1 :] for words in lines]


def test_rtvlm_is_asked_judged_compared_and_reported_for_every_defense() -> None:
    done = run(
        "rtvlm.sh",
        "my model",
        "da ta",
        "out",
        "--judge-model",
        "X",
        DRY_RUN="1",
        DEFENSES="none oracle",
        LIMIT="7",
        PARTIAL="1",
    )
    commands = printed(done)
    assert [words[0] for words in commands] == ["ask", "judge", "ask", "judge", "compare", "report"]
    for words in commands:
        parsed(words)  # wrong usage would end the test
    asked = parsed(commands[2])
    assert (asked.suite, asked.model, asked.data, asked.defense) == ("rtvlm", "my model", "da ta", "oracle")
    assert (asked.out, asked.limit, asked.partial) == ("out/rtvlm/oracle", 7, True)
    assert parsed(commands[1]).judge_model == "X"


def test_several_processes_ask_under_torchrun() -> None:
    done = run("rtvlm.sh", "m", "d", "o", DRY_RUN="1", DEFENSES="none", GPUS="4")
    assert done.stdout.startswith("torchrun --nproc_per_node 4 --module safevlm eval ask ")
    assert "\nsafevlm eval judge" in done.stdout, "judging is one process's work"


@pytest.mark.slow
def test_absent_suites_are_skipped_and_said_so_and_a_broken_one_does_not_stop_the_rest(
    tmp_path: Path, warm_path: str
) -> None:
    layouts.write(tmp_path / "data" / "vlguard", "vlguard")
    write_suite(tmp_path / "data" / "miniature")
    (tmp_path / "data" / "xstest").mkdir()
    suites = "figstep vlguard miniature"
    asked = {"SUITES": suites, "DEFENSES": "none", "BATCH_SIZE": "8", "PATH": warm_path}
    done = run("all.sh", MODEL, str(tmp_path / "data"), str(tmp_path / "out"), "--judge-model", "X", **asked)
    assert "skipped figstep" in done.stdout
    assert "failed vlguard" in done.stdout and "is not complete" in done.stderr, "fewer rows than published"
    assert "evaluated miniature" in done.stdout
    assert (tmp_path / "out" / "miniature" / "report.html").exists()
    assert done.returncode == 1
    again = run("all.sh", MODEL, str(tmp_path / "data"), str(tmp_path / "out"), PARTIAL="1", **asked)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "evaluated vlguard" in again.stdout and "miniature/none: 0 new replies" in again.stdout


def test_a_folder_without_any_suite_is_no_success(tmp_path: Path) -> None:
    done = run("all.sh", "m", str(tmp_path), "out", DRY_RUN="1")
    assert done.returncode == 1 and "nothing was evaluated" in done.stderr


def test_an_unknown_suite_is_named(tmp_path: Path) -> None:
    done = run("all.sh", "m", str(tmp_path), "out", DRY_RUN="1", SUITES="nonsense")
    assert done.returncode != 0 and "'nonsense'" in done.stderr


@pytest.mark.parametrize("script", ["rtvlm.sh", "all.sh"])
def test_a_missing_argument_is_named(script: str) -> None:
    done = run(script, "m", "d")
    assert done.returncode != 0 and "OUT" in done.stderr


def test_every_target_is_attacked_alike_and_asked_untouched_and_transfer_is_from_the_first() -> None:
    targets = ("head=my model=safety-head", "both=other=safety-head+safe-clip=F")
    done = run("robustness.sh", "da ta", "out", *targets, DRY_RUN="1", LIMIT="7", ANSWERS="bare")
    commands = printed(done)
    assert [words[0] for words in commands] == [
        *["attack", "ask", "judge"],
        *["attack"] * 2,
        "ask",
        "judge",
        "robustness",
        "report",
    ]
    for words in commands:
        parsed(words)
    first, second, moved = (parsed(commands[place]) for place in (0, 3, 4))
    assert (first.model, first.defense, first.limit, first.answers) == ("my model", "safety-head", 7, "bare")
    assert (second.defense, second.attack) == ("safety-head+safe-clip=F", first.attack)
    assert (moved.model, moved.images_of) == ("other", first.out)


def test_target_that_is_no_target_is_named() -> None:
    done = run("robustness.sh", "data", "out", "head=model", DRY_RUN="1")
    assert done.returncode == 2 and "head=model" in done.stderr


def test_robust_stack_trains_each_part_on_the_one_before() -> None:
    done = run("robust_stack.sh", "base", "rec ords", "out", DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [words[1] for words in lines] == ["train", "train", "train", "merge"]
    trained = [parse(words[2:]) for words in lines[:3]]
    assert [recipe.model.path for recipe in trained] == ["base", "out/tower/final", "out/head/final"]
    assert [recipe.run.out for recipe in trained] == ["out/tower", "out/head", "out/stage2"]
    assert all(recipe.data.train == ["rec ords"] for recipe in trained)
    for recipe in trained:
        stage_of(recipe).check(recipe)
