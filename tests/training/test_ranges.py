"""Recipes that train nothing, or backwards, are refused where they are read: by key, with the range, exit code 2."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml

from safevlm import ranges
from safevlm.__main__ import main
from safevlm.check import command
from safevlm.config import LossWeights, OptimConfig, Recipe, SafetyConfig
from safevlm.training.recipe import parse

LEAST: dict[str, Any] = {
    "stage": "stage1",
    "model": {"path": "base"},
    "data": {"train": ["a.jsonl"]},
    "run": {"out": "runs/x"},
}
NONE_BELOW_ZERO = (-1, ".nan", ".inf")
COUNTED = (0, -1, ".nan")

REFUSED: dict[str, tuple[Any, ...]] = {
    "model.safety.projector_width": COUNTED,
    "model.safety.projector_depth": COUNTED,
    "model.safety.projector_tokens": COUNTED,
    "model.safety.lm_tokens": NONE_BELOW_ZERO,
    "model.safety.head_tokens": NONE_BELOW_ZERO,
    "model.safety.head_heads": COUNTED,
    "data.clean": NONE_BELOW_ZERO,
    "data.pressure": (-0.1, 1.1, ".nan", ".inf"),
    "data.max_length": (-5, 0, ".nan"),
    "data.workers": NONE_BELOW_ZERO,
    "data.feature_cache_gb": NONE_BELOW_ZERO,
    "loss.lm": (-10, ".nan", ".inf"),
    "loss.level": (-10, ".nan", ".inf"),
    "loss.category": (-10, ".nan", ".inf"),
    "lora.r": COUNTED,
    "lora.alpha": COUNTED,
    "lora.dropout": (-0.1, 1, 1.5, ".nan", ".inf"),
    "tensor.tokens": COUNTED,
    "tensor.init_std": NONE_BELOW_ZERO,
    "tensor.epsilon": (-1, 256, ".nan", ".inf"),
    "tensor.kl_words": NONE_BELOW_ZERO,
    "tensor.held_out": NONE_BELOW_ZERO,
    "tensor.weights.malicious": NONE_BELOW_ZERO,
    "tensor.weights.contrastive": NONE_BELOW_ZERO,
    "tensor.weights.benign": NONE_BELOW_ZERO,
    "adversarial.epsilon": (-1, 256, ".nan", ".inf"),
    "adversarial.steps": COUNTED,
    "adversarial.step_size": NONE_BELOW_ZERO,
    "adversarial.weight": NONE_BELOW_ZERO,
    "adversarial.ramp": (-0.1, 1.1, ".nan", ".inf"),
    "data.augment_share": (-0.1, 1.1, ".nan", ".inf"),
    "probe.tokens": COUNTED,
    "probe.hidden": COUNTED,
    "optim.lr": (0, -1e-5, ".nan", ".inf"),
    "optim.epochs": (0, -1, ".nan", ".inf"),
    "optim.batch_size": COUNTED,
    "optim.effective_batch": COUNTED,
    "optim.accumulation": COUNTED,
    "optim.warmup_steps": NONE_BELOW_ZERO,
    "optim.weight_decay": NONE_BELOW_ZERO,
    "optim.max_grad_norm": NONE_BELOW_ZERO,
    "optim.max_steps": (0, -2, ".nan"),
    "run.seed": (-1, 2**32, ".nan"),
    "run.log_steps": COUNTED,
    "run.save_steps": COUNTED,
    "run.keep": COUNTED,
}
"""Every number of a recipe, with values that it cannot have."""
EMPTY = {"model.path": "", "data.train": [], "run.out": ""}
ALLOWED = {
    "optim.max_steps": (-1, 1000),
    "lora.dropout": (0,),
    "tensor.epsilon": (0,),
    "data.clean": (0, None),
    "run.seed": (0, 2**32 - 1),
    "loss.lm": (0,),
    "optim.weight_decay": (0,),
    "optim.max_grad_norm": (0,),
}
"""Ends of the ranges that have a use."""


def _numbers(kind: type, prefix: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _numbers(hint, f"{prefix}{name}.")
        elif {int, float} & {hint, *get_args(hint)} and get_origin(hint) is not list:
            yield prefix + name


def _table(*settings: tuple[str, Any]) -> dict[str, Any]:
    table = json.loads(json.dumps(LEAST))
    for key, value in settings:
        section = table
        *sections, name = key.split(".")
        for one in sections:
            section = section.setdefault(one, {})
        section[name] = float(value[1:]) if value in (".nan", ".inf") else value
    return table


def _file(folder: Path, *settings: tuple[str, Any]) -> Path:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(_table(*settings)), encoding="utf-8")
    return folder / "recipe.yaml"


def _refusal(words: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        parse([str(word) for word in words])
    assert left.value.code == 2
    return capsys.readouterr().err


def test_every_number_of_a_recipe_is_tried_here() -> None:
    assert sorted(REFUSED) == sorted(_numbers(Recipe))


@pytest.mark.parametrize("key", [*REFUSED, *EMPTY])
def test_a_senseless_value_is_out_of_its_keys_range(key: str) -> None:
    for value in REFUSED.get(key, (EMPTY.get(key),)):
        (told,) = ranges.problems(Recipe, _table((key, value)))
        assert told.startswith(f"{key}: "), f"{value} is taken"


@pytest.mark.parametrize("key", [*REFUSED, *EMPTY])
def test_a_senseless_value_is_refused_by_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    value = REFUSED.get(key, (EMPTY.get(key),))[0]
    assert key in _refusal([_file(tmp_path), f"--{key}={value}"], capsys)


def test_the_range_is_told_and_every_wrong_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _file(tmp_path, ("optim.lr", 0), ("lora.dropout", 1.5), ("optim.max_steps", 0))
    said = _refusal([file], capsys)
    assert len([line for line in said.splitlines() if "out of range" in line]) == 1, "in one line"
    for part in ("optim.lr: 0.0", "above 0", "lora.dropout: 1.5", "below 1", "optim.max_steps: 0", "or -1"):
        assert part in said


@pytest.mark.parametrize("key", ALLOWED)
def test_the_ends_of_the_ranges_are_allowed(tmp_path: Path, key: str) -> None:
    for value in ALLOWED[key]:
        parse([str(_file(tmp_path, (key, value)))])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ([("loss.lm", 0), ("loss.level", 0), ("loss.category", 0)], "loss"),
        ([(f"tensor.weights.{part}", 0) for part in ("malicious", "contrastive", "benign")], "tensor.weights"),
        ([("optim.max_steps", 20)], "optim.warmup_steps"),  # the default warm-up
        ([("optim.max_steps", 5), ("optim.warmup_steps", 300)], "optim.warmup_steps"),
        ([("stage", "stage2"), ("loss.lm", 0)], "loss.lm"),
        ([("stage", "security_tensor")], "model.safety"),
        ([("optim.schedule", "zigzag")], "optim.schedule"),
        ([("model.safety.projector_tokens", 17)], "safety.projector_tokens"),
        ([("data.relabel", "bank.json"), ("loss.lm", 0)], "data.relabel"),
    ],
)
def test_values_that_cannot_stand_beside_each_other_are_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[tuple[str, Any]], named: str
) -> None:
    assert named in _refusal([_file(tmp_path, *settings)], capsys)


def test_a_run_shorter_than_its_warm_up_is_allowed_without_one(tmp_path: Path) -> None:
    parse([str(_file(tmp_path, ("optim.max_steps", 5), ("optim.warmup_steps", 4)))])
    parse([str(_file(tmp_path, ("optim.max_steps", 5), ("optim.schedule", "constant")))])  # it has none


@pytest.mark.parametrize("key", ["optim.lr", "optim.epochs", "loss.level", "data.max_length"])
def test_check_says_the_same_of_a_file_and_takes_a_wrong_flag_for_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    request = command.CheckRequest(_file(tmp_path, (key, -10)))
    bad = [one.title for one in command.findings(request) if one.mark == "✗"]
    assert len(bad) == 1 and key in bad[0]
    assert main(["check", str(_file(tmp_path)), f"--{key}=-10"]) == 2
    assert key in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (SafetyConfig, {"lm_tokens": -1}),
        (SafetyConfig, {"projector": "sieve"}),
        (SafetyConfig, {"head_heads": "8"}),
        (LossWeights, {"level": float("nan")}),
        (OptimConfig, {"lr": 0}),
        (OptimConfig, {"batch_size": True}),
    ],
)
def test_settings_made_in_code_or_read_from_a_checkpoint_have_the_same_ranges(
    kind: type, fields: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=rf"\.{next(iter(fields))}: "):
        kind(**fields)
