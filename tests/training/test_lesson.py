"""A run that would move no weight, or leave the head as random as it was made, is refused before it starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safevlm.config import SafetyConfig
from safevlm.training.run import train
from tests import tiny
from tests.training import workshop


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lesson")
    workshop.stock_folder(folder / "stock")
    return folder


def _without_labels(row: dict[str, Any]) -> None:
    row.pop("safe_type"), row.pop("safe_level")


def _without_level(row: dict[str, Any]) -> None:
    row.pop("safe_level")


def _without_image(row: dict[str, Any]) -> None:
    row.pop("image")
    row["conversations"][0]["value"] = "What is it?"


def _as_it_is(row: dict[str, Any]) -> None:
    return None


HEAD_ALONE = {"lm": 0}
NO_TOKENS = {"safety": SafetyConfig(**{**tiny.SAFETY, "lm_tokens": 0})}
CASES: dict[str, tuple[Callable[[dict[str, Any]], None], dict[str, Any], tuple[str, ...]]] = {
    "no label": (_without_labels, {"loss": HEAD_ALONE}, ("rows.jsonl", "safe_level", "safe_type")),
    "no label, and words to learn": (_without_labels, {}, ("rows.jsonl", "safe_level", "safe_type")),
    "labels of questions without an image": (_without_image, {}, ("rows.jsonl", "image")),
    "labels without a weight": (_without_level, {"loss": {"category": 0}}, ("rows.jsonl", "safe_level")),
    "a loss that reaches nothing": (
        _as_it_is,
        {"loss": {"level": 0, "category": 0}, "model": NO_TOKENS},
        ("loss", "model.safety.lm_tokens"),
    ),
}
TAUGHT: dict[str, tuple[Callable[[dict[str, Any]], None], dict[str, Any]]] = {
    "categories alone": (_without_level, {}),
    "LM tokens alone": (_without_labels, {"loss": {"level": 0, "category": 0}}),
}


def _recipe(home: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], sections: dict[str, Any]) -> Any:
    rows = workshop.rows(tmp_path, 8)
    for row in rows:
        change(row)
    records = workshop.save_rows(tmp_path / "rows.jsonl", rows)
    model = {"path": str(home / "stock"), "safety": SafetyConfig(**tiny.SAFETY), **sections.get("model", {})}
    return workshop.recipe(home / "stock", records, tmp_path / "run", **{**sections, "model": model})


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_teaches_nothing_is_refused_and_leaves_nothing(home: Path, tmp_path: Path, name: str) -> None:
    change, sections, parts = CASES[name]
    with pytest.raises(ValueError) as caught:
        train(_recipe(home, tmp_path, change, sections))
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value), caught.value
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", TAUGHT)
def test_a_run_that_teaches_one_thing_goes_through(home: Path, tmp_path: Path, name: str) -> None:
    change, sections = TAUGHT[name]
    sections = {**sections, "optim": {"max_steps": 1}}
    assert train(_recipe(home, tmp_path, change, sections)).is_dir()
