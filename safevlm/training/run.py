"""One training run: build → train → save."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from transformers import TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from safevlm.config import Recipe, SafetyConfig
from safevlm.data import mix
from safevlm.data.collate import Collator, RecordDataset
from safevlm.data.exclude import exclude_images
from safevlm.data.records import Record, read_records, verify_images
from safevlm.defenses.policy import policy_from
from safevlm.model import loading
from safevlm.model.safe_llava import SafeLlavaConfig
from safevlm.taxonomy import read_taxonomy
from safevlm.training import processes, provenance, resume
from safevlm.training.arguments import frozen_dtype, training_arguments
from safevlm.training.hints import add_hints
from safevlm.training.stages import STAGES, prepare
from safevlm.training.trainer import SafeTrainer

log = logging.getLogger(__name__)


def train(recipe: Recipe) -> Path:
    """Runs a recipe; returns the folder of its result, `OUT/final`. Resumes from the newest checkpoint in OUT."""
    arguments = training_arguments(recipe)  # before the model: ZeRO-3 cuts it up while it loads
    out = Path(recipe.run.out)
    processes.check_shared_disk(out, arguments.process_index, arguments.world_size)
    last = resume.newest(recipe, arguments)
    set_seed(recipe.run.seed)
    loaded = _load(recipe)
    records = _records(recipe, loaded, arguments.process_index, arguments.world_size)
    model = prepare(loaded.safe_llava, STAGES[recipe.stage], recipe.lora)
    trainer = SafeTrainer(
        loaded=loaded,
        weights=recipe.loss,
        group_by=recipe.data.group_by,
        files=provenance.files(recipe, records, model, arguments.world_size),
        model=model,
        args=arguments,
        train_dataset=RecordDataset(records),
        data_collator=Collator(loaded.processor, recipe.data.max_length),
    )
    if last and resume.is_done(last, recipe):
        trainer._load_from_checkpoint(last)
        trainer.state = TrainerState.load_from_json(str(Path(last) / TRAINER_STATE_NAME))
    else:
        trainer.train(resume_from_checkpoint=last)
    if trainer.args.should_save:
        with loading.written_atomically(out / loading.FINAL) as folder:
            trainer.save_model(str(folder))
            trainer.state.save_to_json(str(folder / TRAINER_STATE_NAME))
    else:
        trainer.save_model()  # takes part in gathering, writes nothing
    trainer.accelerator.wait_for_everyone()
    return out / loading.FINAL


def _load(recipe: Recipe) -> loading.Loaded:
    """The checkpoint to start from, with the recipe's safety modules, taxonomy and policy."""
    model = recipe.model
    safety, policy = _labels(model.taxonomy, model.safety)
    loaded = loading.load(
        model.path,
        safety=safety,
        base=model.base,
        dtype=frozen_dtype(recipe),
        attention=model.attention,
        lm=bool(recipe.loss.lm),
        quantize=model.quantize,
        device=loading.default_device(recipe.run.device),
    )
    if loaded.kind == "adapter":
        raise ValueError(f"{loaded.path}: has a LoRA already; merge it first: safevlm merge {loaded.path} --out DIR")
    if model.taxonomy:
        _adopt(loaded.safe_llava.config, safety.taxonomy, policy, model.taxonomy)
    return loaded


def _labels(file: str | None, safety: SafetyConfig) -> tuple[SafetyConfig, dict[str, Any] | None]:
    if file is None:
        return safety, None
    taxonomy, policy = read_taxonomy(file)
    return dataclasses.replace(safety, taxonomy=taxonomy.to_dict()), policy


def _adopt(config: SafeLlavaConfig, table: Any, policy: dict[str, Any] | None, file: str) -> None:
    """Puts taxonomy and policy into the checkpoint's config. Its head is of a certain size: names must stay."""
    names = {kind: [entry["name"] for entry in table[kind]] for kind in ("categories", "levels")}
    own = {"categories": config.taxonomy.category_names, "levels": config.taxonomy.level_names}
    if config.safety and names != own:
        raise ValueError(f"model.taxonomy: {file} has {names}, but this checkpoint's head was trained for {own}")
    if config.safety:
        config.safety = {**config.safety, "taxonomy": table}
    policy_from(policy or {}, config.taxonomy, f"{file}: policy")
    config.policy = policy or config.policy


def _records(recipe: Recipe, loaded: loading.Loaded, process: int, processes: int) -> list[Record]:
    taxonomy = loaded.safe_llava.config.taxonomy
    records = read_records(recipe.data.train, taxonomy, recipe.data.images)
    records, _ = exclude_images(records, recipe.data)
    records = mix.draw_clean(records, taxonomy, recipe.data.clean, recipe.run.seed)
    if recipe.data.verify_images:
        verify_images(records[process::processes])
    return add_hints(records, taxonomy) if recipe.data.hints else records
