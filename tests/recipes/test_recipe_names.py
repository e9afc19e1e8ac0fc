"""Shipped files are found by name from any folder; a path still works, and wins; an unknown name lists the names."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from safevlm import recipes
from safevlm.__main__ import main
from safevlm.training.arguments import deepspeed_file
from safevlm.training.recipe import parse

ROOT = Path(__file__).parents[2]
SIDE_BY_SIDE = re.compile(r"   +\(.*\)$")
"""A remark at the end of a recipe's first line."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_shipped_yaml_and_json_has_one_name() -> None:
    files = {file for kind in ("recipe", "mix", "deepspeed") for file in recipes.shipped(kind).values()}
    on_disk = set((ROOT / "safevlm" / "recipes").rglob("*.*")) - set(recipes.FOLDER.glob("taxonomy_*.yaml"))
    assert files == {file for file in on_disk if file.suffix in (".yaml", ".json")}


def test_a_name_gives_what_its_path_gives() -> None:
    shipped = recipes.shipped("recipe")
    assert all(recipes.find(name, "recipe") == file for name, file in shipped.items())
    assert parse(["miniature_stage1"]) == parse([str(shipped["miniature_stage1"])])


def test_a_file_of_that_name_wins(tmp_path: Path) -> None:
    (tmp_path / "miniature_stage1").write_text(
        "stage: stage1\nmodel: {path: mine}\ndata: {train: [a]}\nrun: {out: o}\n"
    )
    assert parse(["miniature_stage1"]).model.path == "mine"


@pytest.mark.parametrize("command", ["train", "check"])
def test_an_unknown_name_is_wrong_usage_and_lists_the_names(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([command, "llava7b_stage3"])
    except SystemExit as error:  # the recipe's own parser
        code = int(error.code or 0)
    said = " ".join(capsys.readouterr().err.split())
    assert code == 2
    assert "did you mean llava7b_stage" in said and all(name in said for name in recipes.shipped("recipe"))


def test_an_unknown_mix_lists_the_mixes_and_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mix", "mine", "--out", "out"]) == 1
    assert capsys.readouterr().err.strip().endswith("one of mix_miniature, mix_safevlm")


def test_deepspeed_settings_are_named_by_flag_and_by_recipe(tmp_path: Path) -> None:
    assert deepspeed_file(parse(["llava7b_stage1"]).run.deepspeed) == recipes.FOLDER / "deepspeed" / "zero2.json"
    assert deepspeed_file(None) is None
    (tmp_path / "own.json").write_text("{}")
    assert deepspeed_file("own.json") == Path("own.json")
    with pytest.raises(ValueError, match=r"run\.deepspeed: zero9.*zero2, zero2_cpu, zero3"):
        deepspeed_file("zero9")


def test_check_knows_recipes_and_mixes_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "miniature_stage1"]) == 1, "its data are not here"
    assert "data.train: no such record file runs/demo/data/train.jsonl" in capsys.readouterr().out
    assert main(["check", "mix_miniature"]) == 1
    assert "runs/data/miniature" in capsys.readouterr().out


@pytest.mark.parametrize("name", recipes.shipped("recipe"))
def test_first_line_of_a_recipe_is_the_command_that_runs_it(name: str) -> None:
    line = recipes.find(name, "recipe").read_text(encoding="utf-8").splitlines()[0]
    command = SIDE_BY_SIDE.sub("", line.removeprefix("# "))
    if not command.startswith("safevlm train "):
        environment = {key: value for key, value in os.environ.items() if key not in ("RECIPE", "LAUNCHER")}
        done = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env={**environment, "DRY_RUN": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        command = done.stdout
    words = shlex.split(command)
    words = words[words.index("train") + 1 :]
    assert words[0] == name, "the command runs another recipe"
    assert parse(words).stage == yaml.safe_load(recipes.find(name, "recipe").read_text(encoding="utf-8"))["stage"]
