"""A recipe in transformers' words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from safevlm import recipes
from safevlm.config import Recipe
from safevlm.model import loading
from safevlm.sharding import share_of
from safevlm.training import processes, updates
from safevlm.training.loggers import check_loggers
from safevlm.training.stages import stage_of


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The recipe in transformers' words, for as many processes as there are.

    ValueError when a GPU is asked for and there is none, or a logger is not installed; UsageError when the batch cannot
    be split over the processes, or `run.report_to` names no logger.
    """
    optim, run = recipe.optim, recipe.run
    check_loggers(run.report_to)
    device = loading.default_device(run.device, "--run.device")
    settings = deepspeed_file(run.deepspeed)
    if settings:
        processes.join_deepspeed()
    world = share_of(None).world
    by_itself = stage_of(recipe).fit is not None
    arguments = TrainingArguments(
        output_dir=run.out,
        per_device_train_batch_size=optim.batch_size,
        gradient_accumulation_steps=1 if by_itself else updates.accumulation(optim, world),
        learning_rate=optim.lr,
        num_train_epochs=optim.epochs,
        max_steps=optim.max_steps,
        warmup_steps=optim.warmup_steps,
        lr_scheduler_type=optim.schedule,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        **_checkpointing(optim.gradient_checkpointing),
        seed=run.seed,
        use_cpu=device.type == "cpu",
        bf16=run.bf16,
        deepspeed=str(settings) if settings else None,
        logging_steps=run.log_steps,
        save_steps=run.save_steps,
        save_total_limit=run.keep,
        report_to=run.report_to or "none",
        dataloader_num_workers=recipe.data.workers,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )
    if arguments.n_gpu > 1:
        raise ValueError("one process sees several GPUs; launch with deepspeed or torchrun (scripts/stage1.sh)")
    if arguments.world_size != world:
        raise ValueError(f"the launcher says WORLD_SIZE {world}, and {arguments.world_size} processes have met")
    return arguments


def deepspeed_file(given: str | None) -> Path | None:
    """Where `run.deepspeed` lies, a path or the name of a shipped file. ValueError: it does not."""
    try:
        return recipes.find(given, "deepspeed") if given else None
    except ValueError as error:
        raise ValueError(f"run.deepspeed: {error}") from error


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """Set only when wanted: newer versions of transformers warn about the name even when it is off."""
    return {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}} if wanted else {}


def frozen_dtype(recipe: Recipe) -> torch.dtype:
    """Type of the frozen weights. DeepSpeed casts the whole model to its own type, so under it that one is `auto`."""
    if recipe.model.dtype != "auto":
        return getattr(torch, recipe.model.dtype)
    if recipe.run.deepspeed:
        return torch.bfloat16 if recipe.run.bf16 else torch.float32
    return loading.default_dtype(loading.default_device(recipe.run.device))
