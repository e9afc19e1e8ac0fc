"""What the card should show: a table of bounds, and where in the rows the number stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from safevlm.evaluation.speed.gpu_check import rows
from safevlm.evaluation.speed.gpu_check.rows import Row

GB = 1e9
Rows = Mapping[str, Row]


@dataclass(frozen=True)
class Goal:
    name: str
    bound: float
    at_most: bool
    """False: at least."""
    measured: Callable[[Rows], float | None]
    """The number; None: its steps have not been measured."""

    def met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound


def count(found: Rows) -> bool:
    """Whether the goals are asked of these rows: they are about the 7B shape on a card."""
    machine = rows.result(found, "machine")
    return machine.get("shape") == "7b" and "capability" in machine


def _at(step: str, *keys: str) -> Callable[[Rows], float | None]:
    def find(found: Rows) -> float | None:
        value = rows.result(found, step)
        for key in keys:
            value = value.get(key, {}) if isinstance(value, Mapping) else {}
        return value if isinstance(value, (int, float)) else None

    return find


def _ratio(
    over: Callable[[Rows], float | None], under: Callable[[Rows], float | None]
) -> Callable[[Rows], float | None]:
    def find(found: Rows) -> float | None:
        top, bottom = over(found), under(found)
        return None if top is None or not bottom else top / bottom

    return find


def _best(key: str, *steps: str) -> Callable[[Rows], float | None]:
    def find(found: Rows) -> float | None:
        values = [value for step in steps if (value := _at(step, "mfu", key)(found)) is not None]
        return max(values, default=None)

    return find


def _speed(step: str) -> Callable[[Rows], float | None]:
    return _at(step, "samples_per_second")


def _fastest(*steps: str) -> Callable[[Rows], float | None]:
    return lambda found: max((speed for step in steps if (speed := _speed(step)(found)) is not None), default=None)


HEAD_ONLY = ("stage 1, head only", "stage 1, head only, batch 64")
LORA = ("stage 2, batch 2", "stage 2, batch 8", "stage 2, batch 8, checkpointing", "stage 2, batch 8, compiled")
GUARDS = ("none", "safety-head", "safe-clip")

GOALS: tuple[Goal, ...] = (
    *(
        Goal(f"{way} over plain generate, {title}", bound, True, _at("engine, batch 1", part, way, "ratio", "value"))
        for part, title, bound in (("answer", "answer", 1.01), ("first_token", "first token", 1.03))
        for way in GUARDS
    ),
    Goal(
        "a refused request over plain generate",
        0.1,
        True,
        _at("engine, batch 1", "answer", "refused", "ratio", "value"),
    ),
    Goal("head only over stage 1, samples/s", 20, False, _ratio(_fastest(*HEAD_ONLY), _speed("stage 1"))),
    Goal("stage 2 over TRL's SFTTrainer, samples/s", 1.3, False, _ratio(_speed("stage 2, batch 2"), _speed("TRL"))),
    Goal("MFU of stage 2, best batch, data sheet's peak", 0.45, False, _best("data sheet", *LORA)),
    Goal("QLoRA (nf4), GB in use", 24, True, _ratio(_at("QLoRA, nf4", "memory", "in_use"), lambda _: GB)),
    Goal("audit over the bare tower, pixels ready", 0.8, False, _at("audit", "judge_over_tower")),
    Goal("audit over the bare tower, from the files", 0.8, False, _at("audit", "audit_over_read_tower")),
    Goal(
        "eval ask with images read in turn over read ahead, seconds",
        1.1,
        False,
        _at("ask, images read ahead", "times_faster", "value"),
    ),
)
