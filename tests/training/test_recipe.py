"""Recipes: every shipped one parses, flags beat YAML, YAML beats defaults, and a wrong key or value is named."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from safevlm.__main__ import main
from safevlm.config import LossWeights, OptimConfig, Recipe
from safevlm.training import provenance, run
from safevlm.training.recipe import parse

ROOT = Path(__file__).parents[2]
SHIPPED = [file for file in sorted((ROOT / "safevlm" / "recipes").glob("*.yaml")) if "\nstage: " in file.read_text()]
LEAST = "stage: stage1\nmodel: {path: base}\ndata: {train: [a.jsonl]}\nrun: {out: runs/x}\n"


@pytest.fixture
def least(tmp_path: Path) -> Path:
    (tmp_path / "least.yaml").write_text(LEAST, encoding="utf-8")
    return tmp_path / "least.yaml"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Recipes that reached the training; nothing is trained."""
    seen: list[Recipe] = []

    def train(recipe: Recipe) -> Path:
        seen.append(recipe)
        return Path("final")

    monkeypatch.setattr(run, "train", train)
    return seen


def _usage_error(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    with pytest.raises(SystemExit) as error:
        main(["train", *words])
    assert error.value.code == 2, "wrong usage exits with 2"
    return capsys.readouterr().err


def test_recipes_are_shipped() -> None:
    assert SHIPPED, "no recipe found; is the root wrong?"


@pytest.mark.parametrize("file", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_parses_and_once_resolved_is_a_recipe_again(file: Path, tmp_path: Path) -> None:
    recipe = parse([str(file), "--loss.category", "0.5"])
    assert recipe.stage in file.stem or (recipe.stage == "stage2" and file.stem.endswith("refusal_lora"))
    (tmp_path / "recipe.yaml").write_text(provenance.recipe_yaml(recipe), encoding="utf-8")
    assert parse([str(tmp_path / "recipe.yaml")]) == recipe, "the recipe beside a checkpoint cannot be run again"


def test_defaults_then_yaml_then_flags(least: Path) -> None:
    assert parse([str(least)]).optim == OptimConfig()
    assert parse([str(least)]).loss == LossWeights(lm=1, level=10, category=10)
    least.write_text(LEAST + "optim: {lr: 0.5, epochs: 7}\nloss: {level: 2}\n", encoding="utf-8")
    recipe = parse([str(least), "--optim.lr", "0.25", "--run.out=elsewhere", "--model.safety.lm_tokens", "8"])
    assert recipe.optim == OptimConfig(lr=0.25, epochs=7)
    assert recipe.loss == LossWeights(level=2)
    assert recipe.run.out == "elsewhere" and recipe.model.safety.lm_tokens == 8


def test_stages_differ_in_nothing_but_what_the_recipe_says(least: Path) -> None:
    first, second = (asdict(parse([str(least), "--stage", stage])) for stage in ("stage1", "stage2"))
    assert {key for key in first if first[key] != second[key]} == {"stage"}


@pytest.mark.parametrize(
    ("addition", "key"),
    [
        ("optim: {learning_rate: 1}", "learning_rate"),
        ("optimizer: {lr: 1}", "optimizer"),
        ("model: {path: base, safety: {tokens: 3}}", "tokens"),
    ],
)
def test_unknown_key_of_a_recipe_is_named(
    least: Path, capsys: pytest.CaptureFixture[str], trained: list[Recipe], addition: str, key: str
) -> None:
    table = {**yaml.safe_load(LEAST), **yaml.safe_load(addition)}
    least.write_text(yaml.safe_dump(table), encoding="utf-8")
    assert key in _usage_error(capsys, [str(least)])
    assert not trained, "the run started all the same"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--optim.learning_rate", "1"], "learning_rate"),
        (["--optim.lr", "fast"], "optim.lr"),
        (["--stage", "stage3"], "stage"),
        (["--optim.max_step", "20"], "max_step"),  # short forms too: what is meant may change with the next key
        (["--optim.batch_size", "1.5"], "optim.batch_size"),
        (["--run.bf16", "perhaps"], "run.bf16"),
    ],
)
def test_wrong_flag_is_named(
    least: Path, capsys: pytest.CaptureFixture[str], trained: list[Recipe], flags: list[str], named: str
) -> None:
    assert named in _usage_error(capsys, [str(least), *flags])
    assert not trained


def test_what_a_recipe_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text("stage: stage1\nmodel: {path: base}\ndata: {train: [a]}\n", encoding="utf-8")
    assert "run" in _usage_error(capsys, [str(tmp_path / "x.yaml")])
    assert "gone.yaml" in _usage_error(capsys, [str(tmp_path / "gone.yaml")])


def test_impossible_size_names_its_key(least: Path, capsys: pytest.CaptureFixture[str], trained: list[Recipe]) -> None:
    try:
        code = main(["train", str(least), "--model.safety.projector_tokens", "17"])
    except SystemExit as error:
        code = error.code
    assert code in (1, 2)
    assert "safety.projector_tokens" in capsys.readouterr().err
    assert not trained


@pytest.mark.parametrize("rank", [["--local_rank=0"], ["--local_rank=3"], []])
def test_the_launchers_local_rank_in_front_is_accepted(least: Path, trained: list[Recipe], rank: list[str]) -> None:
    """`deepspeed` puts it before our own words (base facts §4.5)."""
    assert main([*rank, "train", str(least), "--run.seed", "5"]) == 0
    assert trained[0].run.seed == 5
