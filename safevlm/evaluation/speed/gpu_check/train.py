"""Training steps: samples a second, memory beside what `check` predicts, and the share of the card's peak."""

from __future__ import annotations

import dataclasses
from statistics import median
from typing import Any

from llava_patch import fields
from safevlm.check import memory
from safevlm.check.model_shape import model_shape
from safevlm.evaluation.speed.gpu_check import flops, timing
from safevlm.evaluation.speed.gpu_check.session import Session
from safevlm.model import loading
from safevlm.training import bench
from safevlm.training.prepare import trainable
from safevlm.training.stage import Stage
from safevlm.training.stages import stage_of

STEPS = 10


def train(session: Session, *, mode: str, batch: int, steps: int = STEPS) -> dict[str, Any]:
    """Measures one mode of `bench.MODES`.

    All modes with the LLM in the same type share its weights, stage 1 before stage 2, which puts a LoRA on them.
    """
    how = bench.MODES[mode]
    model = _model(session, how)
    inputs = bench.batch(session.shape, model, batch, session.device)
    found = timed(session, model, how, inputs, steps)
    stage, size = stage_of(bench.recipe_of(session.shape, how)), _size(inputs)
    parts = flops.training_step(loading.inner_of(model), size, stage, runs_llm=bool(how.loss.lm))
    work = sum(parts.values())
    rate = work * found["samples_per_second"] / batch
    return found | {
        "tflop_per_step": work / 1e12,
        "flop_parts": parts,
        "mfu": {name: rate / peak for name, peak in session.peaks().items()},
    }


def timed(
    session: Session, model: Any, how: bench.Mode, inputs: dict[str, Any], steps: int, image_tokens: int = 0
) -> dict[str, Any]:
    """Speed and memory of a training step, of a model of any family that is ready for it; one image per row.

    `image_tokens`: of an image, where images may differ in them.
    """
    session.tidy()
    seconds = bench.timed_steps(model, inputs, how, steps)
    peak, size = session.memory(), _size(inputs)
    stage = stage_of(bench.recipe_of(session.shape, how))
    shape, load = shape_and_load(session, model, how, stage, size)
    predicted = memory.estimate(shape, dataclasses.replace(load, image_tokens=image_tokens))
    return {
        "mode": dataclasses.asdict(how),
        "batch": size.rows,
        "tokens": size.tokens,
        "frozen_dtype": str(loading.default_dtype(session.device)).removeprefix("torch."),
        "trained_parameters": sum(trainable(model).values()),
        "seconds_per_step": timing.told(seconds),
        "samples_per_second": size.rows / median(seconds),
        "memory": peak,
        "predicted": {**dataclasses.asdict(predicted), "total": predicted.total},
    }


def _model(session: Session, how: bench.Mode) -> Any:
    """The model in this mode; what another mode made of it goes on being used where that is possible."""
    key = f"{how.stage} {how.quantize} {bool(how.loss.lm)} {how.compile}"
    if key not in session.kept:
        base = session.kept.get(f"stage1 {how.quantize} True False") if how.stage == "stage2" else None
        session.kept.clear()
        session.tidy()
        if base is None:
            base = bench.random_model(session.shape, session.device, lm=bool(how.loss.lm), quantize=how.quantize)
        session.kept[key] = bench.ready(base, session.shape, how)
    model = session.kept[key]
    bench.checkpoint(model, how.checkpointing)
    return model.train()


def _size(inputs: dict[str, Any]) -> flops.StepSize:
    rows, tokens = inputs["input_ids"].shape
    return flops.StepSize(rows, tokens, rows, len(inputs["logits_to_keep"]))


def shape_and_load(
    session: Session, model: Any, how: bench.Mode, stage: Stage, size: flops.StepSize
) -> tuple[memory.ModelShape, memory.Load]:
    """What `check` would be told of this step: one process without DeepSpeed."""
    config = loading.inner_of(model).config
    shape = model_shape(
        config,
        model,
        lora=stage.adds_lora,
        learns_through_llm=stage.learns_through_llm(config.safety_config),
        runs_llm=bool(how.loss.lm),
    )
    if how.quantize != "none":  # packed weights count two to a byte, or as they are; `check` counts them unpacked
        shape = dataclasses.replace(shape, llm=fields.lm_layers(config) * flops.layer_weights(config))
    load = memory.Load(
        tokens=size.tokens,
        answer_tokens=session.shape.words // 2,
        images=size.images // size.rows,
        batch=size.rows,
        bytes=loading.default_dtype(session.device).itemsize,
        checkpointing=how.checkpointing,
        quantize=how.quantize,
    )
    return shape, load
