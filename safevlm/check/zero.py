"""DeepSpeed's JSON: read, and held against the recipe. DeepSpeed itself is not needed for that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safevlm.config import Recipe
from safevlm.files import FileError, read_json
from safevlm.training import updates

AUTO = "auto"
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Zero:
    """What of a DeepSpeed JSON decides how much memory a GPU needs."""

    stage: int = 0
    offloads_optimizer: bool = False
    offloads_weights: bool = False


def read(path: Path) -> dict[str, Any]:
    """ValueError: not JSON, or no JSON object."""
    try:
        table = read_json(path)
    except FileError as error:
        raise ValueError(f"run.deepspeed: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"run.deepspeed: {path}: must hold a JSON object, not a {type(table).__name__}")
    try:
        settings(table)
    except ValueError as error:
        raise ValueError(f"run.deepspeed: {path}: {str(error).removeprefix('run.deepspeed: ')}") from error
    return table


def settings(table: Mapping[str, Any]) -> Zero:
    zero = _section(table, "zero_optimization")
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in STAGES:
        raise ValueError(f"run.deepspeed: zero_optimization.stage: {stage!r} is none of {list(STAGES)}")
    return Zero(stage, _is_offloaded(zero, "offload_optimizer"), _is_offloaded(zero, "offload_param"))


def conflicts(table: Mapping[str, Any], recipe: Recipe, processes: int) -> Iterator[str]:
    """What the two say differently, and what cannot train at all."""
    optim = recipe.optim
    if _get(table, "fp16.enabled") not in (None, False):
        yield "fp16.enabled: fp16 overflows LLaVA's projector; use bf16 (run.bf16: true)"
    values = {
        "bf16.enabled": recipe.run.bf16,
        "train_micro_batch_size_per_gpu": optim.batch_size,
        "gradient_accumulation_steps": updates.accumulation(optim, processes),
        "train_batch_size": updates.effective_batch(optim, processes),
        "gradient_clipping": optim.max_grad_norm,
        "optimizer.params.lr": optim.lr,
        "optimizer.params.weight_decay": optim.weight_decay,
    }
    for key, wanted in values.items():
        found = _get(table, key)
        if found not in (None, AUTO, wanted):
            yield f'{key} is {found!r}, but the recipe makes it {wanted!r}; write "auto" there'
    yield from _impossible(table, recipe)


def _impossible(table: Mapping[str, Any], recipe: Recipe) -> Iterator[str]:
    zero = settings(table)
    if recipe.run.bf16 and "bf16" not in table and recipe.run.device != "cpu":
        yield 'run.bf16 is on, but the file has no bf16 section; add "bf16": {"enabled": "auto"}'
    if zero.stage == 3 and recipe.model.quantize != "none":
        kind = recipe.model.quantize
        yield f"model.quantize {kind}: ZeRO-3 cannot cut packed weights; use --run.deepspeed zero2"
    if zero.stage == 3 and recipe.run.compile:
        yield "run.compile: ZeRO-3 fetches weights in the middle of a layer; use --run.deepspeed zero2"
    if zero.offloads_weights and zero.stage != 3:
        yield "offload_param needs ZeRO stage 3"
    on_cpu = recipe.run.device == "cpu" and _get(table, "optimizer.type") is not None
    if on_cpu and not _get(table, "optimizer.params.torch_adam"):
        yield 'on a CPU the optimizer needs "torch_adam": true in its params'


def _section(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = table.get(name, {})
    if not isinstance(section, dict):
        raise ValueError(f"run.deepspeed: {name}: {section!r} is not a table")
    return section


def _get(table: Mapping[str, Any], key: str) -> Any:
    """A value by its dotted name; None when it is not there."""
    value: Any = table
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _is_offloaded(zero: Mapping[str, Any], name: str) -> bool:
    return _section(zero, name).get("device", "none") != "none" if name in zero else False
