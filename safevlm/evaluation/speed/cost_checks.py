"""Does the plan's arithmetic tell what was measured? Every run of the GPU checks that it covers, from other numbers.

A prediction uses other runs than the one it predicts. `OFF` names those that are off by more than `BOUND`, and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from safevlm.evaluation.speed import cost_plan
from safevlm.evaluation.speed.cost_constants import measured

BOUND = 0.25


@dataclass(frozen=True)
class RunPrediction:
    """A measured run and what other runs say of it."""

    run: str
    """The name of its constant."""
    predicted: float
    source: str
    """What it is computed from."""

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return self.predicted / measured(self.run) - 1


OFF = {
    "checkpointing, batch 1": "its floor is twice that at batch 2, in the run itself",
    "QLoRA nf4, batch 2": "unpacking weights is not in the arithmetic",
    "QLoRA int8, batch 2": "unpacking weights is not in the arithmetic",
}
"""Runs that the arithmetic does not tell within the bound."""


def predictions() -> list[RunPrediction]:
    return [*_stage2(), *_stage1(), *_answers(), *_audit()]


def _stage2() -> Iterator[RunPrediction]:
    first = (measured("stage 2, batch 8, first run") - measured("stage 2, batch 2, first run")) / 6
    by_work = measured("stage 2, batch 2, first run") - measured("stage 2, batch 1, first run")
    two, eight = measured("stage 2, batch 2"), measured("stage 2, batch 8")
    yield RunPrediction(
        "stage 2, batch 8, first run",
        measured("stage 2, batch 2, first run") + 6 * by_work,
        "batches 1 and 2 of the same run",
    )
    yield RunPrediction(
        "stage 2, batch 1, first run",
        measured("stage 2, batch 2, first run") - first,
        "batches 2 and 8 of the same run",
    )
    yield RunPrediction("stage 2, batch 2, first run", two, "the second run")
    yield RunPrediction("stage 2, batch 8", two + 6 * first, "its batch 2, and the slope of the first run")
    yield RunPrediction("stage 2, batch 2", eight - 6 * first, "its batch 8, and the slope of the first run")
    yield RunPrediction("stage 2, batch 2, compiled", two, "the run that is not compiled")
    yield RunPrediction("stage 2, batch 8, compiled", eight, "the run that is not compiled")
    yield RunPrediction("TRL, batch 2", measured("TRL, batch 2, first run"), "the first run")
    for batch, other in ((8, 2), (2, 8), (1, 8)):
        slower = measured(f"checkpointing, batch {other}") / measured(f"stage 2, batch {other}, first run")
        yield RunPrediction(
            f"checkpointing, batch {batch}",
            measured(f"stage 2, batch {batch}, first run") * slower,
            f"what checkpointing costs at batch {other}",
        )
    for way in ("QLoRA nf4, batch 2", "QLoRA int8, batch 2"):
        yield RunPrediction(way, measured("checkpointing, batch 2"), "checkpointing, batch 2")


def _stage1() -> Iterator[RunPrediction]:
    """A step of stage 1 is one of PGD, forward and back to the input, with a record more."""
    record = measured("stage 1 work, batch 2") / 2 / cost_plan.tflops()
    head = measured("head only work, batch 64") / 64 / cost_plan.tflops()
    yield RunPrediction(
        "stage 1, batch 2",
        measured("PGD on the answer") + record,
        "PGD on an answer, and a record at stage 2's TFLOP/s",
    )
    yield RunPrediction(
        "head only, batch 2", measured("PGD on the head") + head, "PGD on the head, and a record at stage 2's TFLOP/s"
    )
    yield RunPrediction(
        "head only, batch 64", measured("head only, batch 2") + 62 * head, "its batch 2, and stage 2's TFLOP/s"
    )


def _answers() -> Iterator[RunPrediction]:
    """Tokens after the first one, each as long as in the other batch."""
    for way in ("plain", "none", "guarded"):
        yield RunPrediction(
            f"answer of 32, {way}, 1",
            measured(f"first token, {way}, 1") + 31 * measured(f"token, {way}, 16"),
            "its first token, and tokens of batch 16",
        )
        yield RunPrediction(
            f"answers of 16, {way}, 16",
            measured(f"first token, {way}, 16") + 15 * measured(f"token, {way}, 1"),
            "its first token, and tokens of batch 1",
        )
    prefill = measured("stage 1 work, batch 2") / 2 / 2 / cost_plan.tflops()
    yield RunPrediction(
        "first token, plain, 16",
        measured("first token, plain, 1") + 15 * prefill,
        "batch 1, and a forward at stage 2's TFLOP/s",
    )
    yield RunPrediction(
        "first token, guarded, 16",
        measured("first token, plain, 16") + 16 * measured("head, one image"),
        "the plain model, and 16 times the head of one image",
    )


def _audit() -> Iterator[RunPrediction]:
    tower, head = measured("tower, an image"), measured("head, an image")
    yield RunPrediction("judge", 1 / (tower + head), "tower and head, apart")
    seconds = cost_plan.audit_seconds(measured("tower"), measured("judge"), measured("read tower"))
    yield RunPrediction("audit", 1 / seconds, "the tower with reading, and the head on ready pixels")
