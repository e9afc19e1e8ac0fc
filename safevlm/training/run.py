"""One training run: build → train → save."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
import time
from collections import Counter
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import SchedulerType, TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from safevlm.config import Recipe
from safevlm.data import mix
from safevlm.data.collate import Collator, RecordDataset
from safevlm.data.records import Record, read_records, verify_images
from safevlm.model import loading
from safevlm.training.hints import add_hints
from safevlm.training.stages import STAGES, prepare, trainable
from safevlm.training.trainer import SafeTrainer

log = logging.getLogger(__name__)
PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "safetensors")


def train(recipe: Recipe) -> Path:
    """Runs a recipe; returns the folder of its result, `OUT/final`. Resumes from the newest checkpoint in OUT."""
    arguments = training_arguments(recipe)  # before the model: ZeRO-3 partitions while it loads
    set_seed(recipe.run.seed)
    loaded = loading.load(
        recipe.model.path, safety=recipe.model.safety, base=recipe.model.base, dtype=_frozen_dtype(recipe)
    )
    if loaded.kind == "adapter":
        raise ValueError(f"{loaded.path}: has a LoRA already; merge it first: safevlm merge {loaded.path} --out DIR")
    records = _records(recipe, loaded)
    model = prepare(loaded.safe_llava, STAGES[recipe.stage], recipe.lora)
    files = {"recipe.yaml": recipe_yaml(recipe), "run.json": json.dumps(_run_record(recipe, records, model), indent=1)}
    trainer = SafeTrainer(
        loaded=loaded,
        weights=recipe.loss,
        files=files,
        model=model,
        args=arguments,
        train_dataset=RecordDataset(records),
        data_collator=Collator(loaded.processor, recipe.data.max_length),
    )
    out = Path(recipe.run.out)
    last = get_last_checkpoint(str(out)) if recipe.run.resume and out.is_dir() else None
    if last:
        log.info("resuming from %s", last)
    if last and _is_done(last, recipe):
        trainer._load_from_checkpoint(last)
        trainer.state = TrainerState.load_from_json(str(Path(last) / TRAINER_STATE_NAME))
    else:
        trainer.train(resume_from_checkpoint=last)
    if trainer.args.should_save:
        with loading.written_atomically(out / loading.FINAL) as folder:
            trainer.save_model(str(folder))
            trainer.state.save_to_json(str(folder / "trainer_state.json"))
    else:
        trainer.save_model(str(out / loading.FINAL))  # takes part in gathering, writes nothing
    trainer.accelerator.wait_for_everyone()
    return out / loading.FINAL


def _is_done(last: str, recipe: Recipe) -> bool:
    """Whether a checkpoint is the end of a run by `max_steps`; the Trainer would add an update to it."""
    return 0 < recipe.optim.max_steps <= int(last.rsplit("-", 1)[1])


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The recipe in transformers' words. ValueError when a GPU is asked for and there is none."""
    optim, run = recipe.optim, recipe.run
    device = loading.default_device(run.device, "--run.device")
    schedules = [kind.value for kind in SchedulerType]
    if optim.schedule not in schedules:
        raise ValueError(f"optim.schedule: unknown {optim.schedule!r}; one of {schedules}")
    arguments = TrainingArguments(
        output_dir=run.out,
        per_device_train_batch_size=optim.batch_size,
        gradient_accumulation_steps=optim.accumulation,
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
        deepspeed=run.deepspeed,
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
    return arguments


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """Set only when wanted: newer versions of transformers warn about the name even when it is off."""
    return {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}} if wanted else {}


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe, as it can be run again."""
    return yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)


def _frozen_dtype(recipe: Recipe) -> torch.dtype:
    if recipe.model.dtype != "auto":
        return getattr(torch, recipe.model.dtype)
    return loading.default_dtype(loading.default_device(recipe.run.device))


def _records(recipe: Recipe, loaded: loading.Loaded) -> list[Record]:
    taxonomy = loaded.safe_llava.config.taxonomy
    records = read_records(recipe.data.train, taxonomy, recipe.data.images)
    records = mix.draw_clean(records, taxonomy, recipe.data.clean, recipe.run.seed)
    if recipe.data.verify_images:
        verify_images(records)
    return add_hints(records, taxonomy) if recipe.data.hints else records


def _run_record(recipe: Recipe, records: list[Record], model: Any) -> dict[str, Any]:
    """What made this checkpoint: versions, commit, seed, data counts, what trained."""
    sizes = trainable(model)
    return {
        "stage": recipe.stage,
        "seed": recipe.run.seed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "records": {
            "all": len(records),
            "safe_type": _counts(record.safe_type for record in records),
            "safe_level": _counts(record.safe_level for record in records),
        },
        "trained": {"tensors": len(sizes), "parameters": sum(sizes.values())},
    }


def _counts(labels: Any) -> dict[str, int]:
    return {str(label): count for label, count in sorted(Counter(map(str, labels)).items())}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the code that runs; None outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
