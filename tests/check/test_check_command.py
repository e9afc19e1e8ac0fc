"""`safevlm check`: what a path is, its flags beside the recipe's, exit codes, and the numbered output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from safevlm.__main__ import main
from safevlm.check.command import kind_of, split_flags
from safevlm.training.recipe import parse
from tests.training import workshop

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped stage-1 recipe of the miniature, on a few records."""
    folder = tmp_path_factory.mktemp("recipe")
    data = workshop.save_rows(folder / "train.jsonl", workshop.rows(folder, 12))
    table = yaml.safe_load((ROOT / "safevlm/recipes/miniature_stage1.yaml").read_text(encoding="utf-8"))
    table["model"]["path"] = str(ROOT / "checkpoints/miniature")
    table["data"]["train"], table["run"]["out"] = [str(data)], str(folder / "out")
    table["optim"]["warmup_steps"] = 0  # few records are few updates
    (folder / "recipe.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    return folder / "recipe.yaml"


def _code(words: list[str]) -> object:
    """Of the command: a parser leaves, what is found behind it is returned."""
    try:
        return main(words)
    except SystemExit as left:
        return left.code


def test_a_good_recipe_exits_with_0_and_numbers_its_findings(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe), "--gpus", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("  1 ✓ Python")
    assert lines[-1].endswith(" ✓, 0 ✗")
    numbers = [int(line[:3]) for line in lines if line[:3].strip().isdigit() and line[4] in "✓✗–"]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_recipes_flags_are_checked_as_train_would_have_them(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(recipe), "--optim.effective_batch", "9", "--run.out=elsewhere"]) == 1
    printed = capsys.readouterr().out
    assert "✗ recipe: optim.effective_batch: 9 cannot" in printed and "elsewhere is writable" in printed
    assert ", 1 ✗" in printed.splitlines()[-1]


def test_json_holds_every_finding_and_nothing_else(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe), "--json", "--model.path", "nowhere"]) == 1
    table = json.loads(capsys.readouterr().out)
    assert table["failed"] == 1 and table["skipped"] > 3
    assert [one["number"] for one in table["findings"]] == list(range(1, len(table["findings"]) + 1))


@pytest.mark.parametrize(
    "words",
    [
        ["check", "--optim.lr", "1"],
        ["check", "checkpoints/miniature", "--optim.lr", "1"],
        ["check", "nowhere"],
        ["check", "--nodes", "0"],
        ["check", "checkpoints/miniature", "--images", "somewhere"],
        ["check", "--nope"],
    ],
)
def test_wrong_usage_exits_with_2(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert _code(words) == 2, capsys.readouterr().err


@pytest.mark.parametrize("flag", [["--loss", "{lm: 0, level: 1}"], ["--loss={lm: 0, level: 1}"]], ids=str)
def test_a_whole_section_is_a_flag_as_train_takes_it(
    recipe: Path, capsys: pytest.CaptureFixture[str], flag: list[str]
) -> None:
    assert parse([str(recipe), *flag]).loss.lm == 0
    main(["check", str(recipe), *flag, "--json"])
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [one for one in found if one["title"] == f"recipe: {recipe}" and one["ok"]], found[:3]


def test_a_flag_that_the_recipe_does_not_know_is_wrong_usage(recipe: Path) -> None:
    assert _code(["check", str(recipe), "--optim.nope", "1"]) == 2


@pytest.mark.parametrize(
    "text", ["stage: stage1\nnope: 1\n", "stage: [", "stage: stage7\n", "model: {path: a}\n"], ids=str
)
def test_a_recipe_that_cannot_be_read_is_one_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    assert main(["check", str(tmp_path / "a.yaml")]) == 1
    assert capsys.readouterr().out.count("✗ recipe: ") == 1


def test_what_a_path_is_is_told_by_its_contents(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text("sources: {}", encoding="utf-8")
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "final" / "config.json").write_text("{}", encoding="utf-8")
    assert kind_of(None) == "machine"
    assert kind_of(recipe) == "recipe"
    assert kind_of(tmp_path / "mix.yaml") == kind_of(recipe.parent / "train.jsonl") == kind_of(recipe.parent) == "data"
    assert kind_of(tmp_path / "run") == kind_of(ROOT / "checkpoints/miniature") == "model"


def test_flags_are_parted_wherever_they_stand() -> None:
    words = ["--gpus", "8", "--optim.lr", "1", "a.yaml", "--run.bf16=true", "--data.train+", "b", "--stage", "stage2"]
    words += ["--loss", "{lm: 0}", "--options={}"]
    own, recipe = split_flags([*words, "--json"])
    assert own == ["--gpus", "8", "a.yaml", "--json"]
    flags = ["--optim.lr", "1", "--run.bf16=true", "--data.train+", "b", "--stage", "stage2"]
    assert recipe == [*flags, "--loss", "{lm: 0}", "--options={}"]
