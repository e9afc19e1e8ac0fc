"""`~` and `$NAME` in every path that a user writes; a variable that is not set is wrong usage and is named."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from safevlm.__main__ import COMMANDS, main, parser_for
from safevlm.command_line import WORDS
from safevlm.data.mix_file import read_mix
from safevlm.evaluation.ablations import table as ablations
from safevlm.evaluation.suites import own
from safevlm.paths import expanded
from safevlm.training import recipe as recipes
from safevlm.usage import UsageError

LEAST = {"stage": "stage1", "model": {"path": "base"}, "data": {"train": ["a.jsonl"]}, "run": {"out": "runs/x"}}
RECIPE_PATHS = (
    "model.path",
    "model.base",
    "model.taxonomy",
    "data.train",
    "data.images",
    "data.exclude",
    "data.relabel",
    "run.out",
    "run.deepspeed",
)


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "ready"),
    [
        ("~/runs", "/home/somebody/runs"),
        ("~", "/home/somebody"),
        ("$SCRATCH/runs", "/scratch/runs"),
        ("${SCRATCH}_2/$SCRATCH", "/scratch_2//scratch"),
        ("none=~/runs", "none=/home/somebody/runs"),
        ("none=$SCRATCH/runs", "none=/scratch/runs"),
        # no variables: a `$` is legal in a file's name, and `~` in the middle of one
        ("price$5.json", "price$5.json"),
        ("a$", "a$"),
        ("a$$b-$(x)", None),
        ("runs/~backup", "runs/~backup"),
        ("runs/x~", "runs/x~"),
        ("plain", "plain"),
    ],
)
def test_home_and_variables_are_put_in_and_nothing_else(text: str, ready: str | None) -> None:
    if ready is None:
        with pytest.raises(UsageError, match=r"\$b"):
            expanded(text)
    else:
        assert expanded(text) == ready


def test_a_file_of_that_very_name_is_itself(tmp_path: Path) -> None:
    (tmp_path / "$NOWHERE.json").write_text("{}", encoding="utf-8")
    assert expanded("$NOWHERE.json") == "$NOWHERE.json"


def test_an_unset_variable_is_named() -> None:
    for text in ("$NOWHERE/x", "a/${NOWHERE}"):
        with pytest.raises(UsageError, match=r"\$NOWHERE is not set"):
            expanded(text)


def _set(key: str, value: str) -> dict[str, Any]:
    table = json.loads(json.dumps(LEAST))
    section, name = key.split(".")
    table[section][name] = [value] if key in ("data.train", "data.exclude") else value
    return table


@pytest.mark.parametrize("key", RECIPE_PATHS)
def test_paths_of_a_recipe_are_expanded(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    file = tmp_path / "recipe.yaml"
    section, name = key.split(".")
    for value, ready in (("$SCRATCH/x", "/scratch/x"), ("~/x", "/home/somebody/x")):
        file.write_text(yaml.safe_dump(_set(key, value)), encoding="utf-8")
        found = getattr(getattr(recipes.parse(["$PLACE/recipe.yaml"]), section), name)
        assert found in (ready, [ready])
    file.write_text(yaml.safe_dump(_set(key, "$NOWHERE/x")), encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        recipes.parse([str(file)])
    said = capsys.readouterr().err
    assert left.value.code == 2 and key in said and "$NOWHERE" in said


def _texts(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    found = []
    for action in parser._actions:  # argparse has no public list of them
        if isinstance(action, argparse._SubParsersAction):
            found += [one for each in action.choices.values() for one in _texts(each)]
        elif action.option_strings != ["-h", "--help"] and action.nargs != 0:
            found.append(action)
    return found


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_every_flag_that_may_be_a_path_is_expanded(command: str) -> None:
    flags = _texts(parser_for(command))
    assert flags
    for flag in flags:
        name = "/".join(flag.option_strings) or flag.dest
        if flag.metavar in WORDS:
            assert flag.type is None, f"{name}: words are not paths"
        else:
            assert flag.type is not None and flag.type not in (str, Path), f"{name} takes $NAME as it is"


def test_an_unset_variable_in_a_flag_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["eval", "ask", "--model", "m", "--out", "$NOWHERE/runs"])
    said = capsys.readouterr().err
    assert left.value.code == 2 and "--out" in said and "$NOWHERE" in said


def test_paths_in_a_mix_are_expanded(tmp_path: Path) -> None:
    table = {"root": "$SCRATCH/data", "sources": {"a": {"kind": "llava", "path": "~/a.json", "images": "$SCRATCH/i"}}}
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    (source,) = read_mix(tmp_path / "mix.yaml", tmp_path).sources
    assert (source.path, str(source.images)) == (Path("/home/somebody/a.json"), "/scratch/i")
    table["sources"]["a"]["path"] = "x"  # type: ignore[index]
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    assert read_mix(tmp_path / "mix.yaml", tmp_path).sources[0].path == Path("/scratch/data/x")
    table["root"] = "$NOWHERE"
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    with pytest.raises(ValueError, match=r"mix\.yaml: root: .*\$NOWHERE"):
        read_mix(tmp_path / "mix.yaml", tmp_path)


def test_paths_in_a_table_of_ablations_are_expanded(tmp_path: Path) -> None:
    content = {
        "training": {"one": {"recipe": "miniature_stage1", "data": "$SCRATCH/a.jsonl"}},
        "sections": {"all": {"row": {"train": "one"}}},
    }
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (step,) = ablations.plan(ablations.read_table(tmp_path / "table.yaml"), "base", "data", "out", [1])
    assert step.records == "/scratch/a.jsonl"


def test_paths_in_an_own_suite_are_expanded(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    row = {"id": "a", "question": "What is it?", "group": "x"}
    (tmp_path / "rows" / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    told = {"name": "mine", "file": "$PLACE/rows/rows.jsonl", "judge": "refusals", "groups": {"x": {"side": "benign"}}}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    suite = own.read_suite_file(tmp_path / "suite.yaml")
    assert [one.request.id for one in suite.load(Path("elsewhere"))] == ["a"]


def test_the_recipe_beside_a_checkpoint_holds_the_place_itself() -> None:
    made = recipes.parse(["miniature_stage1", "--run.out", "$SCRATCH/x"])
    assert dataclasses.asdict(made)["run"]["out"] == "/scratch/x"
