"""The GPU check: steps, budget, limits and rows with a scripted worker; the real workers at the tiny shape, slowly."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from safevlm.config import LoraSettings
from safevlm.engine import reading
from safevlm.evaluation.speed.gpu_check import (
    asking,
    command,
    flops,
    goals,
    other_family,
    plan,
    rows,
    supervisor,
    table,
    timing,
)
from safevlm.evaluation.speed.gpu_check.plan import STEPS, Step
from safevlm.evaluation.speed.gpu_check.session import Session
from safevlm.training import bench
from safevlm.training.stages import stage_of

ROOT = Path(__file__).parents[2]
PACKAGE = "safevlm.evaluation.speed.gpu_check"
MISSING = ("jsonargparse", "deepspeed", "bitsandbytes", "trl", "datasets", "pyarrow", "sklearn", "scipy", "matplotlib")
MISSING += ("openai", "pydantic", "torchvision", "pandas", "pytest")
"""What a bare machine lacks, or may lack."""
BLOCKER = f"""
import importlib.metadata, importlib.util, sys
find_spec, distribution = importlib.util.find_spec, importlib.metadata.distribution
def is_missing(name):
    return name.partition(".")[0] in {MISSING!r}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if is_missing(name):
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)
def without(name):
    if is_missing(name):
        raise importlib.metadata.PackageNotFoundError(name)
    return distribution(name)
sys.meta_path.insert(0, Blocker())
importlib.util.find_spec = lambda name, package=None: None if is_missing(name) else find_spec(name, package)
importlib.metadata.distribution = without
"""
"""Libraries ask before they import; they too must not find it."""
WORKER = """
import json, os, sys, time
answers = os.fdopen(int(sys.argv[sys.argv.index("--answers") + 1]), "w")
def say(**answer):
    answers.write(json.dumps(answer) + "\\n")
    answers.flush()
begun = False
for line in sys.stdin:
    name = json.loads(line)["step"]
    if "no card" in name:
        sys.exit("torch sees no GPU here")
    if not begun:
        say(begun=True)
    begun = True
    print("working on", name, flush=True)
    if "late" in name:
        time.sleep(60)
    if "dies" in name:
        sys.exit("the card fell off the bus")
    if "breaks" in name:
        say(status="failed", why="ValueError: no")
        sys.exit(1)
    if "large" in name:
        say(status="out of memory", why="CUDA out of memory", memory={"allocated": 5})
        continue
    say(status="ok", result={"name": name, "process": os.getpid()})
"""


FIRST = {step.work: step.name for step in reversed(STEPS) if step.group != plan.OTHER}.values()
"""A step of each kind; those of another family run in this file's own process."""
ALL = [step.name for step in STEPS]


def step(name: str, group: str = "a", estimate: float = 0.0, limit: float = 20.0, needs: str = "") -> Step:
    return Step(name, group, "none:none", estimate, limit, {}, needs)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, rows.Row]]:
    """Runs steps with the scripted worker; returns the rows."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    monkeypatch.setattr(supervisor, "WORKER", (sys.executable, str(script)))
    monkeypatch.setattr(plan, "START", 0.0)

    def run(*steps: Step, seconds: float = 60.0) -> dict[str, rows.Row]:
        supervisor.run(steps, tmp_path, supervisor.Budget(seconds), [], lambda row: None)
        return rows.read(tmp_path / rows.FILE)

    return run


def statuses(found: dict[str, rows.Row]) -> dict[str, str]:
    return {name: row["status"] for name, row in found.items()}


def test_the_plan_fits_into_nine_minutes_and_with_every_package_there_all_but_its_last_groups_do() -> None:
    packages = {step.needs for step in STEPS}
    assert plan.estimate(STEPS, {plan.FAMILIES}) <= command.SECONDS <= 540
    assert plan.estimate(plan.chosen([], ["QLoRA int8", plan.OTHER]), packages) <= command.SECONDS
    assert STEPS[-1].group == plan.OTHER, "what a small budget drops first"
    assert len({step.name for step in STEPS}) == len(STEPS)
    assert all(step.estimate < step.limit for step in STEPS)


def test_the_page_has_the_plans_sums() -> None:
    page = (ROOT / "docs/gpu_check.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| **sum**")]
    sums = [float(row[3].strip(" *")) for row in cells]
    assert sums == [plan.estimate(STEPS), plan.estimate(STEPS, {step.needs for step in STEPS})]


def test_the_steps_of_a_group_stand_together() -> None:
    """Else a group's process would be started, and its model built, twice."""
    groups = [step.group for step in STEPS]
    assert [name for at, name in enumerate(groups) if at == 0 or groups[at - 1] != name] == list(dict.fromkeys(groups))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_step_names_a_function(step: Step) -> None:
    module, _, function = step.work.partition(":")
    assert callable(getattr(importlib.import_module(f"{PACKAGE}.{module}"), function))
    assert step.options.get("mode", "stage1") in bench.MODES


def test_steps_are_chosen_by_name_or_group() -> None:
    assert {step.group for step in plan.chosen(["engine"])} == {"engine"}
    assert [step.name for step in plan.chosen(["head"])] == ["head"]
    assert "audit" not in {step.name for step in plan.chosen([], ["looking"])}
    with pytest.raises(ValueError, match="no step is named 'engin'"):
        plan.chosen(["engin"])


def test_steps_of_a_group_share_a_process_and_groups_do_not(run: Callable[..., dict[str, rows.Row]]) -> None:
    found = run(step("one"), step("two"), step("three", "b"))
    one, two, three = (rows.result(found, name)["process"] for name in ("one", "two", "three"))
    assert one == two != three
    assert "start_seconds" in found["one"] and "start_seconds" not in found["two"]


def test_what_goes_wrong_is_a_row_and_the_rest_goes_on(run: Callable[..., dict[str, rows.Row]]) -> None:
    found = run(
        step("breaks"),
        step("dies"),
        step("large"),
        step("late", limit=0.5),
        step("needs a package", needs="no_such_package"),
        step("needs a later version", needs="packaging>=999"),
        step("fine"),
    )
    assert statuses(found) == {
        "breaks": rows.FAILED,
        "dies": rows.FAILED,
        "large": rows.OUT_OF_MEMORY,
        "late": rows.TIMED_OUT,
        "needs a package": rows.ABSENT,
        "needs a later version": rows.ABSENT,
        "fine": rows.OK,
    }
    assert "ValueError: no" in found["breaks"]["why"]
    assert "ended with code 1" in found["dies"]["why"] and "the card fell off the bus" in found["dies"]["why"]
    assert "working on late" in found["late"]["why"] and found["late"]["seconds"] < 5
    assert found["large"]["memory"] == {"allocated": 5}


def test_a_process_that_never_begins_is_not_started_for_every_step(run: Callable[..., dict[str, rows.Row]]) -> None:
    found = run(step("no card"), step("two"), step("three", "b"))
    assert statuses(found) == {"no card": rows.FAILED, "two": rows.FAILED, "three": rows.OK}
    assert "sees no GPU" in found["two"]["why"] and found["two"]["seconds"] == 0


def test_a_step_that_would_not_fit_is_not_begun_and_a_smaller_one_is(run: Callable[..., dict[str, rows.Row]]) -> None:
    found = run(step("too long", estimate=100), step("short", estimate=1))
    assert statuses(found) == {"too long": rows.NOT_RUN, "short": rows.OK}


def test_the_budget_stops_a_step_whose_own_limit_would_not(run: Callable[..., dict[str, rows.Row]]) -> None:
    started = time.monotonic()
    found = run(step("late", limit=60), seconds=2)
    assert found["late"]["status"] == rows.TIMED_OUT and time.monotonic() - started < 10


def test_a_second_call_runs_what_has_no_final_row(run: Callable[..., dict[str, rows.Row]]) -> None:
    first = run(step("fine"), step("large"), step("late", limit=0.5), step("afterwards", estimate=100))
    again = run(step("fine"), step("large"), step("late", limit=0.5), step("afterwards", estimate=1))
    assert again["fine"] == first["fine"] and again["large"] == first["large"]
    assert again["late"] != first["late"] and again["afterwards"]["status"] == rows.OK


def test_a_killed_check_leaves_its_rows_and_no_process(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    steps = "[Step(name, 'a', 'none:none', 0, 60) for name in ('one', 'two', 'late')]"
    code = f"""
import sys
from pathlib import Path
from {PACKAGE} import plan, supervisor
from {PACKAGE}.plan import Step
supervisor.WORKER, plan.START = (sys.executable, {str(tmp_path / "worker.py")!r}), 0
supervisor.run({steps}, Path({str(tmp_path)!r}), supervisor.Budget(60), [], lambda row: None)
"""
    check = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    file = tmp_path / rows.FILE
    _until(lambda: file.is_file() and len(rows.read(file)) == 2)
    worker = rows.result(rows.read(file), "two")["process"]
    check.send_signal(signal.SIGKILL)
    check.wait()
    assert statuses(rows.read(file)) == {"one": rows.OK, "two": rows.OK}
    os.kill(worker, signal.SIGKILL)  # the scripted one sleeps and does not listen; the real one does, see below


def test_the_supervisor_needs_no_torch() -> None:
    """It must begin, and write its first row, whatever is wrong with the machine's packages."""
    modules = ", ".join(f"{PACKAGE}.{name}" for name in ("command", "supervisor", "table", "goals"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_half_a_row_is_dropped_and_another_shapes_rows_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = {"step": "machine", "status": rows.OK, "result": {"shape": "7b", "device": "NVIDIA H100 80GB HBM3"}}
    (tmp_path / rows.FILE).write_text(json.dumps(machine) + '\n{"step": "ceil', encoding="utf-8")
    assert command.main(["--out", str(tmp_path), "--shape", "tiny", "--device", "cpu"]) == 2
    assert "holds rows of 7b on cuda" in capsys.readouterr().err
    assert list(rows.read(tmp_path / rows.FILE)) == ["machine"]


def test_the_plan_is_printed_with_its_sum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--out", str(tmp_path / "none"), "--plan"]) == 0
    told = capsys.readouterr().out
    assert all(step.name in told for step in STEPS) and "estimates" in told
    assert not (tmp_path / "none").exists()


def test_goals_are_asked_of_the_7b_shape_on_a_card_only() -> None:
    def speed(samples: float) -> dict[str, Any]:
        interval = {"value": 1.0, "low": 0.9, "high": 1.1, "n": 10}
        return {"samples_per_second": samples, "seconds_per_step": interval, "memory": {"in_use": 2**30}}

    def found(shape: str, **more: Any) -> dict[str, rows.Row]:
        results: dict[str, dict[str, Any]] = {
            "machine": {"shape": shape, **more},
            "stage 1": speed(10.0),
            "stage 1, head only": speed(150.0),
            "stage 1, head only, batch 64": speed(250.0),
            "audit": {"judge_over_tower": 0.7, "audit_over_read_tower": 0.9},
        }
        return {
            name: {"step": name, "status": rows.OK, "seconds": 1.0, "estimate": 1.0, "result": result}
            for name, result in results.items()
        }

    assert goals.count(found("7b", capability="9.0")) and not goals.count(found("tiny", capability="9.0"))
    assert not goals.count(found("7b"))
    met = {goal.name: (goal.measured(found("7b", capability="9.0")), goal) for goal in goals.GOALS}
    ratio, goal = met["head only over stage 1, samples/s"]
    assert ratio == 25.0 and goal.met(25.0) and not goal.met(19.9)
    ratio, goal = met["audit over the bare tower, pixels ready"]
    assert ratio == 0.7 and not goal.met(0.7)
    assert met["QLoRA (nf4), GB in use"][0] is None
    about = {"command": ["x"], "started": "now", "budget": 1.0}
    card = table.text(found("7b", capability="9.0"), about)
    assert "| ≥ 20 | 25 | yes |" in card and "not measured" in card
    assert "| yes |" not in table.text(found("tiny"), about)


def test_rounds_rotate_who_is_first() -> None:
    order: list[str] = []
    ways = {name: (lambda name=name: order.append(name)) for name in "abc"}
    found = timing.in_rounds(ways, torch.device("cpu"), rounds=3, warm_up=0)
    assert ["".join(order[at : at + 3]) for at in (0, 3, 6)] == ["abc", "bca", "cab"]
    ratios = timing.over({"a": [1.0, 2.0, 4.0], "b": [2.0, 4.0, 8.0], "c": found["c"]}, "a")
    assert ratios["b"]["ratio"]["value"] == 2.0 and ratios["b"]["ratio"]["low"] == 2.0, "paired within a round"


@pytest.mark.parametrize("mode", ["stage1", "stage1-head-only", "stage2-lora"])
def test_operations_by_formula_are_those_that_are_run(mode: str) -> None:
    """Of the matrix products that torch counts; eager attention computes the half that a causal mask throws away."""
    how = bench.MODES[mode]
    shape = dataclasses.replace(bench.SHAPES["tiny"], lora=LoraSettings(r=64))  # as much work as the layers themselves
    model = bench.build(shape, how, torch.device("cpu"))
    model.set_attn_implementation("eager")
    inputs = bench.batch(shape, model, 2, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        bench.loss_of(model, inputs, how.loss).backward()
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    size = flops.StepSize(2, inputs["input_ids"].shape[1], 2, len(inputs["logits_to_keep"]))
    work = flops.training_step(inner, size, stage_of(bench.recipe_of(shape, how)), runs_llm=bool(how.loss.lm))
    formula = sum(work.values()) + work.get("attention", 0)
    assert formula == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_head_only_training_of_another_family_builds_no_layer_of_the_llm(tmp_path: Path) -> None:
    found = other_family.head_only(Session.open("tiny", "cpu", tmp_path), batch=2, steps=1)
    assert found["lm_layers"] == 0 and found["trained_parameters"] > 0
    assert found["batch"] == 2 and 0 < found["image_tokens"] < found["tokens"]


def test_another_family_answers_behind_the_head_as_it_does_without_this_package(tmp_path: Path) -> None:
    session = Session.open("tiny", "cpu", tmp_path)
    found = other_family.generation(session, batch=2, tokens=4, rounds=1)
    assert found["same_as_plain"] == {"plain": 1.0, "none": 1.0, "safety-head": 1.0}


def test_a_suite_is_asked_with_images_read_ahead_and_in_turn_and_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, int] = {}
    begin = reading.ReadAhead.begin

    def noted(ahead: reading.ReadAhead, requests: Any, every_frame: bool) -> None:
        begun.update({request.id: begun.get(request.id, 0) + 1 for request in requests})
        begin(ahead, requests, every_frame)

    monkeypatch.setattr(reading.ReadAhead, "begin", noted)
    found = asking.read_ahead(Session.open("tiny", "cpu", tmp_path), images=48, batch=16, tokens=2, rounds=1)
    assert found["same_replies"] == {asking.AHEAD: 1.0, asking.IN_TURN: 1.0}
    assert begun == {"0002": 2, "0003": 2}, "the second of two batches, in the uncounted round and the counted one"


@pytest.mark.slow
def test_workers_import_nothing_that_a_bare_machine_lacks() -> None:
    names = sorted({step.work.partition(":")[0] for step in STEPS} | {"worker", "session"})
    code = BLOCKER + "".join(f"import {PACKAGE}.{name}\n" for name in names)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("names", [FIRST, pytest.param(ALL, marks=pytest.mark.thorough)], ids=["few", "all"])
def test_the_tiny_shape_runs_on_a_bare_machine_and_goes_on_after_a_kill(names: Collection[str], tmp_path: Path) -> None:
    """Every step a row, with nothing installed that such a machine lacks; killed in the middle, the rows are there."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER, encoding="utf-8")
    out = tmp_path / "out"
    folder = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}",
        "PATH": f"{folder}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    shell = shutil.which("bash") or "bash"
    words = [shell, "scripts/gpu_check.sh", "--shape", "tiny", "--device", "cpu", "--seconds", "900", "--out", str(out)]
    words += [word for name in names for word in ("--only", name)]
    check = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    file = out / rows.FILE
    _until(lambda: file.is_file() and len(rows.read(file)) >= 3, seconds=300)
    check.send_signal(signal.SIGKILL)
    check.wait()
    before = rows.read(file)
    assert set(statuses(before).values()) == {rows.OK} and (out / command.TABLE).is_file()
    _until(lambda: not _workers(out), seconds=30)
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    found = rows.read(file)
    assert done.returncode == 0, (out / supervisor.LOG).read_text(encoding="utf-8")[-3000:]
    assert {name: found[name] for name in before} == before
    steps = plan.chosen(names)
    assert list(found) == [step.name for step in steps]
    there = {"", plan.FAMILIES}
    assert statuses(found) == {step.name: rows.OK if step.needs in there else rows.ABSENT for step in steps}
    assert all(row["seconds"] <= row["limit"] for row in found.values())
    same = rows.result(found, "engine, batch 1")["same_as_plain"]
    assert {same[way] for way in ("none", "safety-head", "safe-clip")} == {1.0} and same["refused"] == 0.0
    assert rows.result(found, "ask, images read ahead")["same_replies"] == {"read ahead": 1.0, "in turn": 1.0}
    page = (out / command.TABLE).read_text(encoding="utf-8")
    assert "not asked" in page and ("## Qwen2.5-VL, guarded generation" in page) == (names is ALL)


def _workers(out: Path) -> list[str]:
    """Command lines of workers of this check that are alive."""
    lines = [_command_line(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    return [line for line in lines if f"{PACKAGE}.worker" in line and str(out) in line]


def _command_line(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _until(holds: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"nothing after {seconds:.0f} s"
        time.sleep(0.05)
