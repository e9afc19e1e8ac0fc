"""`safevlm plan`: its constants are the committed ones, and its arithmetic tells the runs that were measured."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from safevlm.__main__ import main
from safevlm.commands import plan as command
from safevlm.evaluation.speed import cost_checks, cost_plan
from safevlm.evaluation.speed.cost_constants import CONSTANTS
from safevlm.evaluation.speed.gpu_check import rows
from safevlm.evaluation.suites import rtvlm
from safevlm.evaluation.suites.suite import TOTAL
from safevlm.recipes import shipped

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")


@cache
def _steps(file: str) -> dict[str, Any]:
    return dict(rows.read(ROOT / file))


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_is_the_number_in_its_committed_file(name: str) -> None:
    constant = CONSTANTS[name]
    row = _steps(constant.file)[constant.step]
    found = row if constant.key in row else row["result"]
    for key in constant.key.split("/"):
        found = found[key]
    assert constant.value == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("one", cost_checks.predictions(), ids=lambda one: one.run)
def test_the_arithmetic_tells_a_measured_run_or_the_page_says_that_it_does_not(one: cost_checks.RunPrediction) -> None:
    if one.run in cost_checks.OFF:
        assert abs(one.error) > cost_checks.BOUND, "it is told now: take it out of OFF"
        assert cost_checks.OFF[one.run] in " ".join(PAGE.split())
    else:
        assert abs(one.error) <= cost_checks.BOUND


def test_every_step_of_the_gpu_checks_that_trains_answers_or_audits_is_predicted() -> None:
    told = {(CONSTANTS[one.run].file, CONSTANTS[one.run].step) for one in cost_checks.predictions()}
    timed = {
        (file, step)
        for file in {constant.file for constant in CONSTANTS.values()}
        for step in _steps(file)
        if step.startswith(("stage", "engine", "audit", "QLoRA", "TRL"))
    }
    assert timed - told == {("eval/results/gpu/h200/rows.jsonl", "TRL")}, "TRL's first run predicts its second"


def test_the_parts_of_an_audit_tell_it_on_another_machine_and_model() -> None:
    """The miniature on a CPU; nothing of it is among the constants."""
    rate = json.loads((ROOT / "eval/results/analysis/audit_speed.json").read_text())["per_second"]
    predicted = 1 / cost_plan.audit_seconds(rate["tower"], rate["judge"], rate["read tower"])
    assert predicted == pytest.approx(rate["audit"], rel=cost_checks.BOUND)


def test_the_plan_goes_through_what_recipes_and_suites_say() -> None:
    counts = yaml.safe_load(Path(shipped("mix")["mix_safevlm"]).read_text())["counts"]
    assert sum(counts.values()) == cost_plan.RISKY + cost_plan.CLEAN and counts["clean"] == cost_plan.CLEAN
    stages = cost_plan.trainings(cost_plan.Workload().stage2_batch)
    for name, recipe in {
        "stage 1": "llava7b_stage1",
        "stage 1, head only": "llava7b_stage1_head_only",
        "stage 2": "llava7b_stage2",
    }.items():
        told = yaml.safe_load(Path(shipped("recipe")[recipe]).read_text())
        optim = told["optim"]
        assert optim["batch_size"] == stages[name].batch
        assert (optim["effective_batch"], optim["epochs"]) == (cost_plan.EFFECTIVE_BATCH, cost_plan.EPOCHS)
        assert stages[name].records == cost_plan.RISKY + told["data"].get("clean", cost_plan.CLEAN)
    assert rtvlm.SUITE.published[TOTAL] == cost_plan.RTVLM_QUESTIONS


def test_one_gpu_is_the_measured_rate_and_several_are_a_range_that_never_beats_it() -> None:
    workload = cost_plan.Workload()
    plans = [cost_plan.plan(workload, gpus) for gpus in (1, 8, 64)]
    for one in plans[0]:
        assert one.seconds[0] == one.seconds[1] and one.rate[0] == one.rate[1]
    stage2 = next(one for one in plans[0] if one.job == "stage 2")
    assert stage2.seconds[0] == pytest.approx(93_177 * 3 / 8.0814, rel=0.001)
    for fewer, more in pairwise(plans):
        for one, other in zip(fewer, more, strict=True):
            times = other.gpus / one.gpus
            assert other.rate[0] <= other.rate[1] and other.seconds[0] <= other.seconds[1]
            if one.job != "stage 1, head only":  # batches of 16 do not fit 64 GPUs, whose steps are all floor
                assert one.rate[0] < other.rate[0]
            assert other.rate[1] <= one.rate[1] * times * (1 + 1e-9)


def test_a_slower_network_and_more_work_take_longer() -> None:
    base = cost_plan.plan(cost_plan.Workload(), 64, ["train"])
    slow = cost_plan.plan(cost_plan.Workload(), 64, ["train"], cost_plan.Assumptions(between_nodes=(1.0, 5.0)))
    assert all(one.seconds[1] < other.seconds[1] for one, other in zip(base, slow, strict=True))
    for more in (cost_plan.Workload(answer_tokens=500), cost_plan.Workload(judge_tokens=500)):
        longer = cost_plan.plan(more, 1, ["rtvlm"])
        assert longer[0].seconds[0] > cost_plan.plan(cost_plan.Workload(), 1, ["rtvlm"])[0].seconds[0]


def _table(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    assert main(["plan", *words]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_cost_is_hours_times_the_readers_price_and_else_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    head, _, *priced = _table(["--gpus", "1", "--gpu-hour", "2"], capsys)
    column = head.index("cost")
    for line in priced:
        hours, cost = (float(line[at].replace(",", "")) for at in (head.index("GPU hours"), column))
        assert cost == pytest.approx(2 * hours, rel=0.01)
    assert "cost" not in _table(["--gpus", "1"], capsys)[0]


def test_gpus_that_the_effective_batch_cannot_be_dealt_out_to_are_wrong_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "--gpus", "1", "100"]) == 2
    told = capsys.readouterr()
    assert "--gpus 100" in told.err and "--jobs" in told.err and not told.out
    assert len(_table(["--gpus", "100", "--jobs", "audit", "serve"], capsys)) == 2 + 3


@pytest.mark.parametrize("words", [[], ["--check"]], ids=str)
def test_the_page_shows_what_the_command_prints(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for cells in _table(words, capsys)[2:]:
        assert command.row(*cells) in PAGE
