"""The machine: floors as in setup.py, what a recipe needs, and the torchvision that breaks transformers."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from safevlm.check import packages
from safevlm.check.lazy_parts import run
from safevlm.config import DataConfig, ModelConfig, Recipe, RunConfig
from safevlm.training.arguments import training_arguments

ROOT = Path(__file__).parents[2]


def _recipe(stage: str = "stage1", model: dict[str, str] | None = None, **fields: object) -> Recipe:
    return Recipe(stage, ModelConfig("base", **(model or {})), DataConfig(["a"]), RunConfig("out", **fields))  # type: ignore[arg-type]


def _titles(recipe: Recipe | None = None) -> list[str]:
    return [one.title for one in run(packages.CHECKS, recipe) if not one.ok]


def test_this_machine_can_train() -> None:
    assert _titles(_recipe("stage2")) == []


def test_floors_are_those_of_setup() -> None:
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    floors = dict(re.findall(r'"([a-z-]+)(?:\[[a-z]+\])?>=([\d.]+)"', text))
    ours = {package.name: package.floor for package in packages.PACKAGES if package.floor != "0"}
    assert ours == {name: floor for name, floor in floors.items() if name in ours}


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("peft", _recipe("stage2")),
        ("deepspeed", _recipe(deepspeed="zero2.json")),
        ("bitsandbytes", _recipe(model={"quantize": "nf4"})),
        ("flash-attn", _recipe(model={"attention": "flash_attention_2"})),
        ("transformers", None),
    ],
)
def test_a_package_that_the_recipe_needs_is_an_error_when_missing(
    monkeypatch: pytest.MonkeyPatch, name: str, recipe: Recipe | None
) -> None:
    found = packages.installed
    monkeypatch.setattr(packages, "installed", lambda package: None if package == name else found(package))
    bad = [one.title for one in packages.packages(recipe) if not one.ok]
    assert len(bad) == 1 and bad[0].startswith(f"{name} is not installed; pip install"), bad
    assert name in packages.CORE or all(one.ok for one in packages.packages(None)), "not needed without that recipe"


@pytest.mark.parametrize(("filelock", "clashes"), [("4.3.1", True), ("4", True), ("3.29.1", False)])
def test_a_package_that_another_one_breaks_is_an_error(
    monkeypatch: pytest.MonkeyPatch, filelock: str, clashes: bool
) -> None:
    here, found = {"lmms-eval": "0.7.3", "filelock": filelock}, packages.installed
    monkeypatch.setattr(packages, "installed", lambda package: here.get(package) or found(package))
    assert [f"filelock {filelock}" in title and "filelock<4" in title for title in _titles()] == [True] * clashes
    assert '"filelock<4"' in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_a_package_below_its_floor_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = packages.installed
    monkeypatch.setattr(packages, "installed", lambda package: "5.6.0" if package == "transformers" else found(package))
    assert any("transformers 5.6.0 is older than 5.23" in title for title in _titles())


def test_a_broken_torchvision_is_named_with_its_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision").mkdir()
    says = 'raise RuntimeError("operator torchvision::nms does not exist")'
    (tmp_path / "torchvision" / "__init__.py").write_text(says, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (found,) = packages.torchvision(None)
    assert not found.ok and "pip uninstall torchvision" in found.title and "nms" in found.detail


@pytest.mark.parametrize("name", ["wandb", "clearml", "nosuch"])
def test_a_logger_that_is_not_there_is_an_error_of_check_and_of_training(name: str) -> None:
    recipe = _recipe(report_to=[name])
    (found,) = packages.loggers(recipe)
    assert not found.ok and "run.report_to" in found.title and name in found.title
    with pytest.raises(ValueError, match=f"run.report_to.*{name}"):
        training_arguments(recipe)


@pytest.mark.parametrize("names", [[], ["none"], ["all"]])
def test_words_for_no_logger_and_all_loggers_are_fine(names: list[str]) -> None:
    assert not list(packages.loggers(_recipe(report_to=names)))


def test_deepspeed_on_a_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(device="cpu", deepspeed=str(ROOT / "safevlm/recipes/deepspeed/zero2_cpu.json"))
    monkeypatch.setattr(packages, "_command", lambda name: False)
    (found,) = packages.compiler(recipe)
    assert not found.ok and "ninja" in found.title
