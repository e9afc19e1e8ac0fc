"""Ablations: every row of the shipped tables is a recipe with the modules it says, and the report leaves no row out."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from safevlm import recipes
from safevlm.config import Recipe, SafetyConfig
from safevlm.evaluation.ablations.results import ablations
from safevlm.evaluation.ablations.table import check_trained, plan, read_table, told
from safevlm.model import loading
from safevlm.training import run
from safevlm.training.recipe import parse
from tests import tiny
from tests.evaluation.synthetic_runs import write_run
from tests.evaluation.world_of_runs import write_suite
from tests.training import workshop

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TABLES = sorted((ROOT / "eval" / "ablations").glob("*.yaml"))
SMALL = """
training:
  stage1: {recipe: one.yaml, data: a.jsonl, set: {optim.max_steps: 5}}
  stage2: {recipe: two.yaml, data: b.jsonl}
sections:
  modules:
    neither: {}
    head: {train: stage1, set: {data.hints: false}, defense: oracle}
    head+lora: {train: stage2, model: head}
    mixer_off: {model: head+lora}
  once more:
    again: {same: head}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "table.yaml").write_text(SMALL, encoding="utf-8")
    return tmp_path / "table.yaml"


def _recipes(file: Path) -> dict[str, Recipe]:
    """What each trained row of a table comes to, parsed as `safevlm train` does."""
    steps = [step for step in plan(read_table(file), "MODEL", "DATA", "OUT", [1]) if step.recipe]
    return {step.row: parse([step.recipe, "--model.path", step.base, *step.flags]) for step in steps}


@pytest.mark.parametrize("file", TABLES, ids=lambda path: path.stem)
def test_every_trained_row_of_a_shipped_table_is_a_recipe(file: Path) -> None:
    recipes = _recipes(file)
    assert {recipe.stage for recipe in recipes.values()} == {"stage1", "stage2"}
    assert {recipe.run.seed for recipe in recipes.values()} == {1}, "the seed must reach the training"


@pytest.mark.parametrize("file", TABLES, ids=lambda path: path.stem)
def test_module_rows_have_the_modules_that_they_are_named_after(file: Path) -> None:
    recipes = _recipes(file)
    found = {
        name: (recipe.model.safety.lm_tokens > 0, recipe.model.safety.projector != "none")
        for name, recipe in recipes.items()
    }
    assert found["tokens_only"] == (True, False) and found["head_only"] == (False, True)
    assert found["both"] == (True, True) and found["neither+lora"] == (False, False)
    assert all(recipe.loss.lm == 0 for name, recipe in recipes.items() if found[name] == (False, True)), (
        "without LM tokens the LLM would run for nothing"
    )


@pytest.mark.parametrize("file", TABLES, ids=lambda path: path.stem)
def test_rows_without_a_head_are_not_asked_behind_it(file: Path) -> None:
    table, recipes = read_table(file), _recipes(file)
    for name, recipe in recipes.items():
        if recipe.stage == "stage1":
            has_head = recipe.model.safety.projector != "none"
            assert table.rows[name].defense == ("safety-head" if has_head else "none")


def test_both_tables_ask_the_same_questions() -> None:
    counts = [{section.split(",")[0].split(" (")[0] for section in read_table(file).sections} for file in TABLES]
    assert counts[0] == counts[1] and len(counts) == 2


def test_tokens_alone_train_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = workshop.stock_folder(tmp_path / "base")
    records = workshop.save_rows(tmp_path / "records.jsonl", workshop.rows(tmp_path))
    trainers = workshop.watch(monkeypatch)
    safety = SafetyConfig(**{**tiny.SAFETY, "projector": "none", "lm_tokens": 2})
    final = run.train(workshop.recipe(base, records, tmp_path / "run", model={"path": str(base), "safety": safety}))
    assert trainers[0].changed() == {"safety_lm_tokens.latent"}
    loaded = loading.load(final)
    assert loaded.safe_llava.safety_head is None and loaded.safe_llava.safety_lm_tokens is not None


def test_flags_are_those_of_the_stage_then_of_the_row(small: Path) -> None:
    step = next(step for step in plan(read_table(small), "M", "D", "O", [7]) if step.row == "head")
    assert step.flags == ["--optim.max_steps", "5", "--data.hints", "false", "--run.seed", "7"]
    assert step.command.startswith("safevlm train one.yaml --model.path M --data.train [D/a.jsonl] --run.out O/")


def test_what_was_never_trained_is_asked_once_and_the_rest_for_every_seed(small: Path) -> None:
    steps = plan(read_table(small), "M", "D", "O", [7, 8])
    assert [(step.row, step.seed) for step in steps] == [
        ("neither", 7),
        ("head", 7),
        ("head+lora", 7),
        ("mixer_off", 7),
        ("head", 8),
        ("head+lora", 8),
        ("mixer_off", 8),
    ]
    trained, lora, off = steps[4:]
    assert lora.base == trained.model and off.model == lora.model and not off.recipe
    assert all(len(line.split("\t")) >= 6 and "\t\t" not in line for line in told(steps)), "bash drops empty fields"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("set: {data.hints: false}", "sets: {}", "head.sets: "),
        ("train: stage2", "train: stage3", "stage3"),
        ("model: head}", "model: again}", "again"),
        ("same: head}", "same: haed}", "haed"),
        ("again:", "head:", "once"),
        ("again:", "and again:", "spaces"),
    ],
)
def test_wrong_row_is_an_error_that_names_it(small: Path, old: str, new: str, named: str) -> None:
    assert old in SMALL
    small.write_text(SMALL.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"table\.yaml:.*{named}"):
        read_table(small)


def test_run_of_another_table_is_not_taken_for_this_one(small: Path, tmp_path: Path) -> None:
    steps = plan(read_table(small), "M", "D", str(tmp_path), [7])
    final = tmp_path / "seed-7" / "head" / "run" / "final"
    final.mkdir(parents=True)
    trained = {"optim": {"max_steps": 5.0}, "data": {"hints": False}, "run": {"seed": 7}}
    (final / "recipe.yaml").write_text(yaml.safe_dump(trained), encoding="utf-8")
    check_trained(steps)
    (final / "recipe.yaml").write_text(yaml.safe_dump({**trained, "data": {"hints": True}}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"recipe\.yaml: has data\.hints True, row head False"):
        check_trained(steps)


def _measure(small: Path, out: Path, leave_out: str = "") -> tuple[list[str], dict, str]:
    table = read_table(small)
    steps = plan(table, "M", "D", str(out), [7, 8])
    for step in steps:
        if step.row == leave_out:
            continue
        folder = write_run(step.run("miniature"), "miniature", good=0.9, seed=step.seed)
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(record | {"command": f"safevlm eval ask {step.row}"}))
        if step.recipe:
            final = Path(step.model) / "final"
            final.mkdir(parents=True)
            (final / "trainer_state.json").write_text(json.dumps({"global_step": 5}))
            (final / "run.json").write_text(json.dumps({"records": {"all": 24}, "trained": {"parameters": 3}}))
    missing = ablations(table, steps, "miniature", out)
    return missing, json.loads((out / "ablations.json").read_text()), (out / "ablations.md").read_text()


def test_report_has_every_row_under_its_heading_with_a_number_per_seed(small: Path, tmp_path: Path) -> None:
    missing, found, page = _measure(small, tmp_path / "out")
    assert missing == [] and list(found["rows"]) == ["neither", "head", "head+lora", "mixer_off", "again"]
    head = found["rows"]["head"]["seeds"]
    assert set(head) == {"7", "8"} and head["7"]["asr"] != head["8"]["asr"]
    assert head["7"]["training"] == {"updates": 5, "records": 24, "parameters": 3}
    assert [line.split()[0] for line in head["7"]["commands"]] == ["safevlm", "safevlm"]
    assert found["rows"]["again"]["seeds"] == head, "`same` must tell the numbers of the row that it names"
    assert found["rows"]["neither"]["seeds"].keys() == {"7"}
    row = next(line for line in page.splitlines() if line.startswith("| again"))
    assert row.count(" / ") >= 6
    assert page.index("| modules |") < page.index("| once more |") < page.index("| again")


def test_row_without_a_run_is_told(small: Path, tmp_path: Path) -> None:
    missing, found, page = _measure(small, tmp_path / "out", leave_out="head")
    assert missing == ["head@7", "head@8"] == found["missing"]
    assert "| head | missing |" in page and "| again | missing |" in page


def _script(small: Path, data: Path, out: Path) -> subprocess.CompletedProcess[str]:
    keys = ("TABLE", "SUITE", "EVAL_DATA", "SEEDS", "LAUNCHER", "GPUS", "NODES", "LIMIT", "DEFENSES", "JUDGE", "POLICY")
    clean = {key: value for key, value in os.environ.items() if key not in keys}
    return subprocess.run(
        ["bash", str(ROOT / "eval" / "ablations" / "safevlm.sh"), "my model", str(data), str(out)],
        cwd=ROOT,
        env={**clean, "DRY_RUN": "1", "LIMIT": "6", "TABLE": str(small)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_script_prints_the_plan(small: Path, tmp_path: Path) -> None:
    done = _script(small, write_suite(tmp_path / "da ta"), tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith(("safevlm", "python"))]
    trained = [words for words in commands if words[:2] == ["safevlm", "train"]]
    assert [words[2:5] for words in trained] == [
        ["one.yaml", "--model.path", "my model"],
        ["two.yaml", "--model.path", f"{tmp_path}/out/seed-256/head/run"],
    ]
    asked = [words for words in commands if "ask" in words]
    assert [words[words.index("--defense") + 1] for words in asked] == ["none", "oracle", "none", "none"]
    assert all(words[words.index("--limit") + 1] == "6" for words in asked)


def test_suite_that_is_not_there_stops_the_script_before_anything_trains(small: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = _script(small, tmp_path / "empty", tmp_path / "out")
    assert done.returncode == 1 and "suite miniature" in done.stderr and "safevlm train" not in done.stdout


@pytest.mark.parametrize("file", TABLES, ids=lambda path: path.stem)
def test_shipped_table_names_recipes_that_are_there(file: Path) -> None:
    for training in yaml.safe_load(file.read_text(encoding="utf-8"))["training"].values():
        assert training["recipe"] in recipes.shipped("recipe")
