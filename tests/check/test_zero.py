"""DeepSpeed's JSON against the recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safevlm.check import zero
from safevlm.config import DataConfig, ModelConfig, OptimConfig, Recipe, RunConfig

SHIPPED = sorted((Path(__file__).parents[2] / "safevlm" / "recipes" / "deepspeed").glob("*.json"))
GPU = Recipe("stage1", ModelConfig("base"), DataConfig(["a"]), RunConfig("out", bf16=True))
CPU = replace(GPU, run=RunConfig("out", device="cpu"))


def _conflicts(table: dict[str, Any], recipe: Recipe = GPU) -> list[str]:
    return list(zero.conflicts({"bf16": {"enabled": "auto"}, **table}, recipe, processes=8))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_files_have_no_conflict(file: Path) -> None:
    recipe = CPU if file.stem.endswith("_cpu") else GPU
    assert list(zero.conflicts(zero.read(file), recipe, 8)) == []
    assert zero.settings(zero.read(file)).stage == int(file.stem[4])


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"fp16": {"enabled": True}}, "fp16"),
        ({"fp16": {"enabled": "auto"}}, "fp16"),
        ({"bf16": {"enabled": False}}, "bf16.enabled"),
        ({"train_micro_batch_size_per_gpu": 3}, "train_micro_batch_size_per_gpu"),
        ({"gradient_accumulation_steps": 3}, "gradient_accumulation_steps"),
        ({"train_batch_size": 64}, "train_batch_size"),
        ({"optimizer": {"params": {"lr": 1}}}, "optimizer.params.lr"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "offload_param"),
    ],
)
def test_each_conflict_is_told_alone(table: dict[str, Any], told: str) -> None:
    found = _conflicts(table)
    assert len(found) == 1 and told in found[0], found


def test_matching_numbers_are_no_conflict() -> None:
    optim = OptimConfig()
    steps = {"train_micro_batch_size_per_gpu": optim.batch_size, "gradient_accumulation_steps": 8}
    assert _conflicts({**steps, "train_batch_size": 128}) == []


def test_zero3_and_packed_weights_do_not_go_together() -> None:
    packed = replace(GPU, model=ModelConfig("base", quantize="nf4"))
    assert _conflicts({"zero_optimization": {"stage": 2}}, packed) == []
    assert "ZeRO-3" in _conflicts({"zero_optimization": {"stage": 3}}, packed)[0]


def test_zero3_and_compiled_layers_do_not_go_together() -> None:
    compiled = replace(GPU, run=replace(GPU.run, compile=True))
    assert _conflicts({"zero_optimization": {"stage": 2}}, compiled) == []
    assert "run.compile" in _conflicts({"zero_optimization": {"stage": 3}}, compiled)[0]


@pytest.mark.parametrize("text", ["{", "[]", '{"zero_optimization": {"stage": 4}}', '{"zero_optimization": 2}'])
def test_a_broken_file_is_an_error_that_names_the_flag(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.deepspeed"):
        zero.settings(zero.read(tmp_path / "a.json"))


def test_offloading_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {}}})
    )
    assert zero.settings(zero.read(tmp_path / "a.json")) == zero.Zero(3, True, False)
