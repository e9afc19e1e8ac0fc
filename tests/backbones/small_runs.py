"""Data and recipes of runs of a second on the tiny models of `families`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safevlm.config import DataConfig, ModelConfig, OptimConfig, Recipe, RunConfig, SafetyConfig
from tests.backbones import families


def turns(*said: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[turn % 2], "value": text} for turn, text in enumerate(said)]


def data(home: Path) -> Path:
    """Six records with an image, one without, one with two; the images lie beside it."""
    rows: list[dict[str, Any]] = []
    for index in range(6):
        families.image(index, 20 + 4 * index, 24).save(home / f"{index}.png")
        label = {"safe_type": ("clean", "illegal")[index % 2], "safe_level": ("safe", "must_refuse")[index % 2]}
        said = turns("<image>\nWhat is it?", f"Thing {index}.")
        rows.append({"id": str(index), "image": f"{index}.png", **label, "conversations": said})
    rows.append({"id": "words", "conversations": turns("Hello!", "Hi.", "More?", "Yes.")})
    two = {"safe_type": "illegal", "safe_level": "must_refuse"}
    said = turns("<image><image>\nCompare.", "Alike.")
    rows.append({"id": "two", "image": ["1.png", "3.png"], **two, "conversations": said})
    (home / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    return home / "data.json"


def recipe(
    home: Path,
    stage: str,
    start: Path,
    out: str,
    *,
    safety: SafetyConfig = families.SAFETY,
    lm_tokens: int = 3,
    optim: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    **settings: Any,
) -> Recipe:
    """Two updates over `data.json` in `home`; `optim`, `run` and `model` change fields of these sections."""
    usual: dict[str, Any] = {"lr": 1e-2, "epochs": 1, "batch_size": 1, "effective_batch": 4, "warmup_steps": 1}
    return Recipe(
        stage,
        ModelConfig(str(start), safety=replace(safety, lm_tokens=lm_tokens), **(model or {})),
        DataConfig([str(home / "data.json")]),
        RunConfig(str(home / out), **{"device": "cpu", **(run or {})}),
        optim=OptimConfig(**usual | (optim or {})),
        **settings,
    )
