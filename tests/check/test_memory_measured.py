"""The estimate beside what training steps had in use on a GPU (`eval/results/gpu`)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from safevlm.check import memory
from safevlm.check.memory import Load, ModelShape
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
