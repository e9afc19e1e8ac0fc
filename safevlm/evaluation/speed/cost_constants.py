"""What `safevlm plan` computes with: every number with the committed result file, the step and the key it comes from.

All of them are of one NVIDIA H200 with random weights of the 7B shape, in one process (docs/gpu_check.md). Nothing is
read when a plan is made: tests hold the table against the files.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST, SECOND = "eval/results/gpu/h200/rows.jsonl", "eval/results/gpu/h200_second/rows.jsonl"
STEP, WORK = "seconds_per_step/value", "tflop_per_step"


@dataclass(frozen=True)
class MeasuredConstant:
    """A number and where it was read."""

    value: float
    file: str
    step: str
    """The row of the GPU check; its start is beside the result, all else is in it."""
    key: str
    """Path within the row's result."""


CONSTANTS = {
    # seconds of a training step: forward, backward, optimizer; 768 tokens a record
    "stage 1, batch 2": MeasuredConstant(0.15203, FIRST, "stage 1", STEP),
    "stage 2, batch 1, first run": MeasuredConstant(0.23832, FIRST, "stage 2, batch 1", STEP),
    "stage 2, batch 2, first run": MeasuredConstant(0.29895, FIRST, "stage 2, batch 2", STEP),
    "stage 2, batch 8, first run": MeasuredConstant(0.60491, FIRST, "stage 2, batch 8", STEP),
    "stage 2, batch 2": MeasuredConstant(0.24748, SECOND, "stage 2, batch 2", STEP),
    "stage 2, batch 8": MeasuredConstant(0.55974, SECOND, "stage 2, batch 8", STEP),
    "stage 2, batch 2, compiled": MeasuredConstant(0.24560, SECOND, "stage 2, batch 2, compiled", STEP),
    "stage 2, batch 8, compiled": MeasuredConstant(0.54822, SECOND, "stage 2, batch 8, compiled", STEP),
    "checkpointing, batch 1": MeasuredConstant(0.49767, FIRST, "stage 2, batch 1, checkpointing", STEP),
    "checkpointing, batch 2": MeasuredConstant(0.41395, FIRST, "stage 2, batch 2, checkpointing", STEP),
    "checkpointing, batch 8": MeasuredConstant(0.84036, FIRST, "stage 2, batch 8, checkpointing", STEP),
    "QLoRA nf4, batch 2": MeasuredConstant(0.59777, FIRST, "QLoRA, nf4", STEP),
    "QLoRA int8, batch 2": MeasuredConstant(0.67641, FIRST, "QLoRA, int8", STEP),
    "head only, batch 2": MeasuredConstant(0.038829, FIRST, "stage 1, head only", STEP),
    "head only, batch 64": MeasuredConstant(0.14247, FIRST, "stage 1, head only, batch 64", STEP),
    "PGD on the answer": MeasuredConstant(0.12090, FIRST, "PGD on the answer", "batch 1/seconds_per_step"),
    "PGD on the head": MeasuredConstant(0.031645, FIRST, "PGD on the head", "batch 1/seconds_per_step"),
    # TFLOP of a step, by formula
    "stage 1 work, batch 2": MeasuredConstant(42.8456, FIRST, "stage 1", WORK),
    "stage 2 work, batch 1": MeasuredConstant(24.2001, FIRST, "stage 2, batch 1", WORK),
    "head only work, batch 64": MeasuredConstant(40.7716, FIRST, "stage 1, head only, batch 64", WORK),
    # trained parameters: what processes exchange
    "stage 1 parameters": MeasuredConstant(107_814_619, FIRST, "stage 1", "trained_parameters"),
    "stage 2 parameters": MeasuredConstant(639_631_360, SECOND, "stage 2, batch 2", "trained_parameters"),
    # seconds of an engine's answer; 742 tokens of prompt, one image
    "first token, plain, 1": MeasuredConstant(0.070632, FIRST, "engine, batch 1", "first_token/plain/seconds"),
    "first token, none, 1": MeasuredConstant(0.076752, FIRST, "engine, batch 1", "first_token/none/seconds"),
    "first token, guarded, 1": MeasuredConstant(0.083700, FIRST, "engine, batch 1", "first_token/safety-head/seconds"),
    "first token, plain, 16": MeasuredConstant(0.49898, FIRST, "engine, batch 16", "first_token/plain/seconds"),
    "first token, none, 16": MeasuredConstant(0.51492, FIRST, "engine, batch 16", "first_token/none/seconds"),
    "first token, guarded, 16": MeasuredConstant(0.60634, FIRST, "engine, batch 16", "first_token/safety-head/seconds"),
    "token, plain, 1": MeasuredConstant(0.021013, FIRST, "engine, batch 1", "seconds_per_token/plain"),
    "token, none, 1": MeasuredConstant(0.020922, FIRST, "engine, batch 1", "seconds_per_token/none"),
    "token, guarded, 1": MeasuredConstant(0.022521, FIRST, "engine, batch 1", "seconds_per_token/safety-head"),
    "token, plain, 16": MeasuredConstant(0.022925, FIRST, "engine, batch 16", "seconds_per_token/plain"),
    "token, none, 16": MeasuredConstant(0.020769, FIRST, "engine, batch 16", "seconds_per_token/none"),
    "token, guarded, 16": MeasuredConstant(0.020412, FIRST, "engine, batch 16", "seconds_per_token/safety-head"),
    "answer of 32, plain, 1": MeasuredConstant(0.72203, FIRST, "engine, batch 1", "answer/plain/seconds"),
    "answer of 32, none, 1": MeasuredConstant(0.72534, FIRST, "engine, batch 1", "answer/none/seconds"),
    "answer of 32, guarded, 1": MeasuredConstant(0.78186, FIRST, "engine, batch 1", "answer/safety-head/seconds"),
    "answers of 16, plain, 16": MeasuredConstant(0.84286, FIRST, "engine, batch 16", "answer/plain/seconds"),
    "answers of 16, none, 16": MeasuredConstant(0.82646, FIRST, "engine, batch 16", "answer/none/seconds"),
    "answers of 16, guarded, 16": MeasuredConstant(0.91252, FIRST, "engine, batch 16", "answer/safety-head/seconds"),
    # an audit: images a second, and seconds an image of its parts; 16 threads read, the head is in float32
    "audit": MeasuredConstant(140.2, FIRST, "audit", "per_second/audit"),
    "tower": MeasuredConstant(683.8, FIRST, "audit", "per_second/tower"),
    "judge": MeasuredConstant(321.9, FIRST, "audit", "per_second/judge"),
    "read tower": MeasuredConstant(188.1, FIRST, "audit", "per_second/read tower"),
    "tower, an image": MeasuredConstant(0.00092205, FIRST, "head", "tower_seconds_per_image"),
    "head, an image": MeasuredConstant(0.0019689, FIRST, "head", "types/float32/seconds_per_image"),
    "head, one image": MeasuredConstant(0.0054420, FIRST, "head", "types/float32/seconds_of_one"),
    "TF32 head, an image": MeasuredConstant(0.00042403, FIRST, "head", "types/tf32/seconds_per_image"),
    "TRL, batch 2, first run": MeasuredConstant(0.31713, FIRST, "TRL", STEP),
    "TRL, batch 2": MeasuredConstant(0.31823, SECOND, "TRL", STEP),
    "start": MeasuredConstant(16.218, FIRST, "engine, batch 1", "start_seconds"),
}


def measured(name: str) -> float:
    """The value of a constant."""
    return CONSTANTS[name].value
