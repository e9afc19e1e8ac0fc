"""The estimate beside what training steps had in use on a GPU (`eval/results/gpu`)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from safevlm.backbones import config_facts, measured
from safevlm.check import memory
from safevlm.check.memory import Load, ModelShape
from safevlm.check.model_shape import model_shape
from safevlm.evaluation.speed.gpu_check import other_family
from safevlm.miniature import words
from safevlm.model import families
from safevlm.training import bench
from tests.check.test_memory import SEVEN_B

ROOT = Path(__file__).parents[2]
SAFETY = 107_814_619
MEASURED = {"h200": 11, "h200_second": 4}
"""Folders, and rows of training in each. One NVIDIA H200, driver 580.159.04, torch 2.11.0 for CUDA 13.0, transformers
5.17.0, peft 0.21.0, bitsandbytes 0.50.2; the 7B shape, bf16, SDPA, one process, no DeepSpeed, one micro-batch."""
BELOW, ABOVE = 0.97, 1.12


def shape_of(row: dict[str, Any]) -> ModelShape:
    stage2, runs_llm = row["mode"]["stage"] == "stage2", bool(row["mode"]["loss"]["lm"])
    return dataclasses.replace(
        SEVEN_B,
        llm=SEVEN_B.llm if runs_llm else 0,
        other=587_159_552,
        trained=SEVEN_B.trained if stage2 else SAFETY,
        lora=stage2,
        runs_llm=runs_llm,
        frozen_safety=SAFETY if stage2 else 0,
    )


def load_of(row: dict[str, Any]) -> Load:
    mode = row["mode"]
    return Load(
        tokens=row["tokens"],
        answer_tokens=bench.SHAPES["7b"].words // 2,
        images=1,
        columns=row["tokens"],  # these steps computed all logits
        batch=row["batch"],
        checkpointing=mode["checkpointing"],
        quantize=mode["quantize"],
    )


def rows(folder: str) -> dict[str, dict[str, Any]]:
    lines = (ROOT / "eval/results/gpu" / folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    steps = {row["step"]: row["result"] for row in map(json.loads, lines) if row["status"] == "ok"}
    return {step: result for step, result in steps.items() if "mode" in result}


@pytest.mark.parametrize("folder", MEASURED)
def test_no_step_needs_much_more_or_less_than_is_estimated(folder: str) -> None:
    found = rows(folder)
    assert len(found) == MEASURED[folder]
    ratios = {
        step: memory.estimate(shape_of(row), load_of(row)).total / row["memory"]["in_use"]
        for step, row in found.items()
    }
    assert all(BELOW <= ratio <= ABOVE for ratio in ratios.values()), ratios


def test_head_only_training_of_another_family_needs_what_is_estimated_of_its_modules_and_image_tokens() -> None:
    """Qwen2.5-VL-7B, transformers 5.23.0, 16 photographs a step. It sees 391 image tokens of 1,564 patches each."""
    row = rows("h200_family")["Qwen2.5-VL, head only"]
    stock, _ = measured.config_and_processor("7b", words.build_tokenizer())
    kinds = families.classes_of(stock)
    config = kinds.config.from_stock(stock, other_family.safety(bench.SHAPES["7b"]))
    with config_facts.with_lm_layers(config, 0), torch.device("meta"):
        model = bench.ready(kinds.model(config), bench.SHAPES["7b"], other_family.HEAD_ONLY)
    shape = model_shape(config, model, lora=False, learns_through_llm=False, runs_llm=False)
    assert shape.trained == row["trained_parameters"]
    load = dataclasses.replace(load_of(row), image_tokens=row["image_tokens"])
    assert BELOW <= memory.estimate(shape, load).total / row["memory"]["in_use"] <= ABOVE
