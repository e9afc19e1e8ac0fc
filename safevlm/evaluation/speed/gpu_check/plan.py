"""The steps of the check in the order of their value, and what each should take.

Steps of a group share a process and the model in it: on a card a process costs about ten seconds until its first
kernel runs and a 7B model three to five, more than most measurements. A step that fails ends its process, and the rest
of the group goes on in another, so no step sees what a broken one left; one that runs out of memory does not.

Estimates are seconds at the 7B shape, as measured on an H200 (eval/results/gpu) and rounded up. The group `other
family` stands last: with every package there, the usual budget does not reach it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from packaging.requirements import Requirement

START = 13.0
"""Seconds until a new process runs its first kernel: imports from a cold disk, and CUDA's context."""
OTHER = "other family"
"""Group of the steps that measure another family than LLaVA."""
FAMILIES = "transformers>=5.23"
"""What other families are known to run with; with 5.17 their images cannot be read."""
START_LIMIT = 120.0
"""Seconds after which a process that has not begun its first step is taken for dead."""


@dataclass(frozen=True)
class Step:
    """One measurement, one row of the result."""

    name: str
    group: str
    """Steps of one group share a process."""
    work: str
    """`module:function` of this package; called with the worker's session and the options."""
    estimate: float
    """Seconds at the 7B shape on an H200, the model's building included where it is the first to need it."""
    limit: float
    """Seconds after which it is stopped."""
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""
    """A package, if need be with a version (`trl`, `trl>=1.16`), without which the step is skipped: `absent`."""


def _train(
    name: str, group: str, estimate: float, limit: float, mode: str, batch: int, needs: str = "", **more: Any
) -> Step:
    return Step(name, group, "train:train", estimate, limit, {"mode": mode, "batch": batch, **more}, needs)


STEPS: tuple[Step, ...] = (
    Step("machine", "ceilings", "ceilings:machine", 2, 30),
    Step("ceilings", "ceilings", "ceilings:ceilings", 2, 60),
    Step("logits", "numerics", "numerics:logits", 5, 60),
    Step("verdicts", "numerics", "numerics:verdicts", 8, 60),
    Step("merged", "numerics", "numerics:merged", 4, 60),
    _train("stage 1", "training", 7, 60, "stage1", 2),
    _train("stage 2, batch 2", "training", 13, 60, "stage2-lora", 2),
    _train("stage 2, batch 2, checkpointing", "training", 7, 60, "stage2-lora-checkpointing", 2),
    _train("stage 2, batch 8, checkpointing", "training", 10, 60, "stage2-lora-checkpointing", 8, steps=6),
    _train("stage 2, batch 1", "training", 5, 60, "stage2-lora", 1),
    _train("stage 2, batch 1, checkpointing", "training", 8, 60, "stage2-lora-checkpointing", 1),
    _train("stage 2, batch 8", "training", 7, 60, "stage2-lora", 8, steps=6),
    _train("stage 2, batch 2, compiled", "training", 50, 120, "stage2-lora-compiled", 2, needs="triton"),
    _train("stage 2, batch 8, compiled", "training", 30, 120, "stage2-lora-compiled", 8, needs="triton", steps=6),
    Step("engine, batch 1", "engine", "answers:answers", 80, 170, {"batch": 1, "tokens": 32, "rounds": 16}),
    Step("engine, batch 16", "engine", "answers:answers", 40, 110, {"batch": 16, "tokens": 16, "rounds": 4}),
    Step("PGD on the answer", "engine", "pgd:on_answer", 4, 40),
    Step(
        "ask, images read ahead",
        "engine",
        "asking:read_ahead",
        52,
        110,
        {"images": 48, "batch": 16, "tokens": 16, "rounds": 5},
    ),
    _train("stage 1, head only", "looking", 4, 40, "stage1-head-only", 2),
    _train("stage 1, head only, batch 64", "looking", 4, 40, "stage1-head-only", 64),
    Step("head", "looking", "looking:head", 6, 60),
    Step("PGD on the head", "looking", "pgd:on_head", 5, 40),
    Step("audit", "looking", "looking:audit", 31, 80),
    Step("TRL", "TRL", "trl_sft:train", 20, 60, {"batch": 2}, needs="trl"),
    _train("QLoRA, nf4", "QLoRA nf4", 30, 90, "stage2-qlora-nf4", 2, needs="bitsandbytes"),
    _train("QLoRA, int8", "QLoRA int8", 33, 90, "stage2-qlora-int8", 2, needs="bitsandbytes"),
    Step("Qwen2.5-VL, head only", OTHER, "other_family:head_only", 21, 90, {"batch": 16}, FAMILIES),
    Step(
        "Qwen2.5-VL, guarded generation",
        OTHER,
        "other_family:generation",
        62,
        150,
        {"batch": 1, "tokens": 32, "rounds": 12},
        FAMILIES,
    ),
)


def chosen(only: Collection[str] = (), leave_out: Collection[str] = ()) -> tuple[Step, ...]:
    """The steps whose name or group is in `only` (empty: all) and not in `leave_out`. ValueError: an unknown name."""
    known = {step.name for step in STEPS} | {step.group for step in STEPS}
    unknown = sorted({*only, *leave_out} - known)
    if unknown:
        raise ValueError(f"no step is named {unknown[0]!r}; one of {sorted(known)}")

    def named(step: Step, names: Collection[str]) -> bool:
        return step.name in names or step.group in names

    return tuple(step for step in STEPS if (not only or named(step, only)) and not named(step, leave_out))


def is_there(needs: str) -> bool:
    """Whether a package is installed, in the version that is asked for. It is not imported."""
    asked = Requirement(needs)
    if importlib.util.find_spec(asked.name) is None:
        return False
    return not asked.specifier or asked.specifier.contains(importlib.metadata.version(asked.name), prereleases=True)


def estimate(steps: Sequence[Step], packages: Collection[str] = ()) -> float:
    """Seconds for these steps one after another, a process per group; of those with `needs` the ones in `packages`."""
    run = [step for step in steps if not step.needs or step.needs in packages]
    return sum(step.estimate for step in run) + START * len({step.group for step in run})
