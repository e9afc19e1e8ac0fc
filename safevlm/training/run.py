"""One training run: build → train → save."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from safevlm.config import Recipe
from safevlm.data import atomic_write, mix
from safevlm.data.exclude import exclude_images
from safevlm.data.pressure import add_pressure
from safevlm.data.record_facts import facts_of
from safevlm.data.record_table import choose, open_records
from safevlm.data.records import Record, refuse_placeholders, verify_images
from safevlm.model import loading
from safevlm.model.checkpoint_folder import FINAL
from safevlm.training import feature_cache, inputs, processes, provenance, resume, standardizing, start, updates
from safevlm.training.arguments import training_arguments
from safevlm.training.compiling import compile_layers
from safevlm.training.hints import add_hints
from safevlm.training.inputs import Inputs
from safevlm.training.lesson import check_lesson
from safevlm.training.prepare import prepare, trainable
from safevlm.training.relabel import relabel
from safevlm.training.stage import Stage, StageRun
from safevlm.training.stages import stage_of

log = logging.getLogger(__name__)


def train(recipe: Recipe) -> Path:
    """Runs a recipe; returns the folder of its result, `OUT/final`. Resumes from the newest checkpoint in OUT."""
    stage = stage_of(recipe)
    stage.check(recipe)
    arguments = training_arguments(recipe)  # before the model: ZeRO-3 cuts it up while it loads
    if stage.fit is not None and arguments.world_size > 1:
        raise ValueError(f"stage {stage.name} trains by itself, in one process; start it without a launcher")
    out = Path(recipe.run.out)
    resume.check_places(recipe)
    processes.check_shared_disk(out, arguments.process_index, arguments.world_size)
    with processes.only_run(out, arguments.process_index, arguments.world_size):
        return _train(recipe, stage, arguments, out)


def _train(recipe: Recipe, stage: Stage, arguments: TrainingArguments, out: Path) -> Path:
    last, found = processes.agree(
        arguments.process_index, arguments.world_size, lambda: _begin(recipe, arguments.world_size)
    )
    if last and Path(last).name == FINAL:
        log.info("%s is the result of this recipe: nothing to do", last)
        return out / FINAL
    set_seed(recipe.run.seed)
    loaded = start.load(recipe)
    stage.check_model(loaded.safe_llava, recipe)
    records, changes = _records(recipe, stage, loaded, arguments)
    if stage.trains_head:
        loaded = standardizing.settle(recipe, loaded, records, arguments, last)
    read = inputs.as_record(found)
    if stage.fit is not None:
        return _fit(stage.fit, StageRun(recipe, loaded, records, out / FINAL, arguments.device), changes, read)
    updates.check_warmup(recipe.optim, updates.in_all(recipe.optim, len(records), arguments.world_size))
    model = prepare(loaded.safe_llava, stage, recipe)
    if recipe.run.compile:
        compile_layers(model)
    with feature_cache.of_run(recipe, arguments.process_index):
        trainer = stage.trainer(
            recipe,
            loaded,
            records,
            weights=recipe.loss,
            group_by=recipe.data.group_by,
            files=provenance.files(recipe, records, changes, trainable(model), arguments.world_size, read),
            model=model,
            args=arguments,
        )
        if last and resume.is_done(last, recipe):
            trainer._load_from_checkpoint(last)
            trainer.state = TrainerState.load_from_json(str(Path(last) / TRAINER_STATE_NAME))
        else:
            trainer.train(resume_from_checkpoint=last)
        if trainer.args.should_save:
            with atomic_write.atomic_folder(out / FINAL) as folder:
                trainer.save_model(str(folder))
                trainer.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        else:
            trainer.save_model()  # takes part in gathering, writes nothing
        trainer.accelerator.wait_for_everyone()
    return out / FINAL


def _begin(recipe: Recipe, world_size: int) -> tuple[str | None, Inputs]:
    """Where the run goes on from, and what it reads; whoever does not resume has the earlier run moved aside."""
    found = inputs.read(recipe)
    last = resume.newest(recipe, world_size, found)
    if not recipe.run.resume:
        resume.set_aside(Path(recipe.run.out))
    return last, found


def _fit(fit: Callable[[StageRun], None], run: StageRun, changes: dict[str, Any], read: dict[str, Any]) -> Path:
    """A stage that trains by itself: one process, one folder, whole or not there."""
    with atomic_write.atomic_folder(run.folder) as folder:
        run.loaded.model.to(run.device).eval()
        fit(replace(run, folder=folder))
        for name, text in provenance.files(run.recipe, run.records, changes, {}, 1, read).items():
            (folder / name).write_text(text, encoding="utf-8")
    return run.folder


def _records(
    recipe: Recipe, stage: Stage, loaded: loading.Loaded, arguments: TrainingArguments
) -> tuple[Sequence[Record], dict[str, Any]]:
    """What the run trains on; and how many records were left out, or answered anew."""
    taxonomy = loaded.safe_llava.config.taxonomy
    opened = cache(lambda: open_records(recipe.data.train, taxonomy, recipe.data.images))
    # the first process checks them for all that share its disk; the others find them checked
    processes.agree(arguments.process_index, arguments.world_size, lambda: len(opened()))
    records, excluded = exclude_images(opened(), recipe.data)
    changes: dict[str, Any] = {"excluded": excluded}
    if recipe.loss.lm:
        refuse_placeholders(choose(records, np.flatnonzero(facts_of(records)["head_only"])))
    records = mix.draw_clean(records, taxonomy, recipe.data.clean, recipe.run.seed)
    changes |= stage.check_records(records, recipe)
    check_lesson(stage, recipe, loaded.safe_llava.config.safety_config, records)
    if recipe.data.verify_images:
        verify_images(records[arguments.process_index :: arguments.world_size])
    if recipe.data.relabel:
        records, changes["relabelled"] = relabel(records, recipe, loaded, arguments)
    records = add_pressure(records, taxonomy, recipe.data.pressure, recipe.run.seed)
    return (add_hints(records, taxonomy) if recipe.data.hints else records), changes
