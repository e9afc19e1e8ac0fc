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
    session.tidy()
    seconds = bench.timed_steps(model, inputs, how, steps)
    peak = session.memory()
    stage = stage_of(bench.recipe_of(session.shape, how))
    size = flops.StepSize(batch, inputs["input_ids"].shape[1], batch, len(inputs["logits_to_keep"]))
    inner = loading.inner_of(model)
    parts = flops.training_step(inner, size, stage, runs_llm=bool(how.loss.lm))
    work, middle = sum(parts.values()), median(seconds)
    predicted = memory.estimate(*shape_and_load(session, model, how, stage, size))
    return {
        "mode": dataclasses.asdict(how),
        "batch": batch,
        "tokens": size.tokens,
        "frozen_dtype": str(loading.default_dtype(session.device)).removeprefix("torch."),
        "trained_parameters": sum(trainable(model).values()),
        "seconds_per_step": timing.told(seconds),
        "samples_per_second": batch / middle,
        "tflop_per_step": work / 1e12,
        "flop_parts": parts,
        "mfu": {name: work / middle / peak_rate for name, peak_rate in session.peaks().items()},
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
