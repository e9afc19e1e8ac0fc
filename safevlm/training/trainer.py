"""transformers' Trainer with a few overrides: what the loss is, what is counted, what is logged, what is saved.

Loss terms are sums over a micro-batch, divided by the item counts of the whole update (all micro-batches, all
processes), so 8 x 1 = 2 x 4 = 1 x 8 and one process = two. A term added inside the model's forward would scale with
accumulation and process count (base facts §4.1).
"""

from __future__ import annotations

import contextlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, rotate_checkpoints

from safevlm.backbones.image_inputs import ImageInputs
from safevlm.config import Grouping, LossWeights, Recipe
from safevlm.data import atomic_write
from safevlm.data.augment import Augmentation
from safevlm.data.batches import GroupedSampler
from safevlm.data.collate import IGNORED, Collator, RecordDataset
from safevlm.data.head_collate import HeadCollator
from safevlm.data.records import Record
from safevlm.model import loading, losses, saving, zero3
from safevlm.model.checkpoint_folder import BROKEN, CheckpointError, first_line
from safevlm.model.safe_llava import SafeLlava
from safevlm.training import feature_cache
from safevlm.training.longest import longest

PARTIAL = ".partial"
"""Folder of a checkpoint that is being written."""
LABELS = {"lm": "labels", "level": "safe_level", "category": "safe_type"}
"""Which labels of a batch each loss term reads."""


class SafeTrainer(Trainer):
    """`loaded` is the checkpoint that the run started from; `files` go into every checkpoint by name."""

    labels = LABELS

    def __init__(
        self,
        *,
        loaded: loading.Loaded,
        weights: LossWeights,
        files: dict[str, str],
        group_by: Grouping = "none",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.loaded, self.files, self.group_by = loaded, files, group_by
        self.weights = {"lm": weights.lm, "level": weights.level, "category": weights.category}
        self.loss_is_scaled_for_ga = True  # `compute_loss` divides by the counts of the whole update
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))
        self._counts: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # under ZeRO-3 processes whose records differ in kind wait for each other for ever (base facts §4.5)
        by = "kind" if self.group_by == "none" and zero3.is_planned() else self.group_by
        if by == "none":
            return super()._get_train_sampler(train_dataset)
        step = self.args.train_batch_size * self.args.world_size
        return GroupedSampler(cast(RecordDataset, self.train_dataset).records, by, step, self.args.seed)

    def _prepare_input(self, data: Any) -> Any:
        """To the device, images of any family too; a loader's batches are there already."""
        return data.to(self.args.device) if isinstance(data, ImageInputs) else super()._prepare_input(data)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor:
        """(terms,) labelled items of the whole update, over all processes."""
        targets = [[_targets(batch, key) for batch in batch_samples] for key in self.labels.values()]
        counts = torch.tensor([sum(int((t != IGNORED).sum()) for t in term) for term in targets], device=device)
        return self.accelerator.reduce(counts, "sum") if self.args.world_size > 1 else counts

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if not isinstance(num_items_in_batch, Tensor):  # outside of a training step
            num_items_in_batch = self._get_num_items_in_batch([inputs], self.args.device)
        terms, outputs = self._terms(model, inputs)
        loss = self._weigh(terms, num_items_in_batch)
        if outputs.idle is not None:
            loss = loss + outputs.idle
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at records {inputs['ids']}; lower optim.lr or check these records"
            )
        self._note(terms)
        return (loss, outputs) if return_outputs else loss

    def _terms(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[dict[str, losses.Term], Any]:
        """The loss terms of a micro-batch by name, and what the model returned."""
        labels, outputs = {term: inputs[key] for term, key in LABELS.items()}, self._outputs(model, inputs)
        terms = {}
        if outputs.logits is not None:
            terms["lm"] = losses.language_modeling(outputs.logits, labels["lm"], inputs.get("logits_to_keep"))
        if outputs.level_logits is not None:
            terms["level"] = losses.classification(outputs.level_logits, labels["level"])
            terms["category"] = losses.classification(outputs.category_logits, labels["category"])
        return terms, outputs

    def _outputs(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Any:
        """What the model makes of a micro-batch."""
        fed = {name: value for name, value in inputs.items() if name not in (*LABELS.values(), "ids")}
        return model(**fed, skip_lm=not self.weights["lm"])

    def _weigh(self, terms: dict[str, losses.Term], counts: Tensor) -> Tensor:
        """Weighted sum of the terms. Gradients are averaged over processes, hence the factor."""
        step = dict(zip(self.labels, counts, strict=True))
        parts = [self.weights[name] * term.total / step[name].clamp(min=1) for name, term in terms.items()]
        return sum(parts, torch.zeros((), device=self.args.device)) * self.args.world_size

    def _note(self, terms: dict[str, losses.Term]) -> None:
        for name, term in terms.items():
            self._sums[name] += term.total.detach()
            self._counts[name] += term.count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds `loss_lm`, `loss_level` and so on: means since the last line, unweighted, over all ranks."""
        if "loss" in logs:
            for name in self.labels:
                total = self.accelerator.reduce(torch.stack([self._sums[name], self._counts[name]]), "sum")
                if total[1] > 0:
                    logs[f"loss_{name}"] = round((total[0] / total[1]).item(), 6)
            self._sums.clear()
            self._counts.clear()
        super().log(logs, start_time)

    @property
    def run_folder(self) -> Path:
        """Where checkpoints go: the recipe's `run.out`, which is never empty."""
        return Path(self.args.output_dir or ".")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Ours only: safety weights, adapter, config, processor, recipe and run record; never the frozen base.

        Called in every process: under DeepSpeed all of them take part in gathering, one writes.
        """
        folder = Path(output_dir or self.run_folder)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        try:
            saving.save(self.loaded, model, folder, self.files, writes=self.args.should_save)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; nothing was kept of it. {self._way_out()}") from error

    def _way_out(self) -> str:
        """What to do when what was learned cannot be kept."""
        run = self.run_folder.parent if self.run_folder.name == PARTIAL else self.run_folder
        last = get_last_checkpoint(str(run)) if run.is_dir() else None
        anew = "start anew with a lower optim.lr, or more optim.warmup_steps: --run.resume false"
        return f"{last} is the newest whole checkpoint; to use it no further, {anew}" if last else f"To go on, {anew}"

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Lets the Trainer write into a hidden folder, which gets its name when it is complete."""
        run, name = self.run_folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        hidden = run / PARTIAL
        if self.args.should_save:
            shutil.rmtree(hidden, ignore_errors=True)  # remains of a save that died
        self.accelerator.wait_for_everyone()
        self.args.output_dir = str(hidden)
        try:
            with atomic_write.told_of(run / name):
                super()._save_checkpoint(model, trial)
        except BaseException:
            if self.args.should_save:
                shutil.rmtree(hidden, ignore_errors=True)
            raise
        finally:
            self.args.output_dir = str(run)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            atomic_write.publish(hidden / name, run / name)
            shutil.rmtree(hidden)
            rotate_checkpoints(output_dir=str(run), save_total_limit=self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Reads what `save_model` wrote back into the live model."""
        with whole(Path(resume_from_checkpoint), "weights"):
            loading.restore(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint), self.loaded)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with whole(Path(checkpoint or ""), "optimiser's or schedule's state"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with whole(Path(checkpoint or ""), "random state"):
            super()._load_rng_state(checkpoint)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[Any, Any]:
        """Under DeepSpeed: its part of a checkpoint holds what trains, not a second copy of the frozen base."""
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        engine: Any = self.model_wrapped  # DeepSpeed's
        engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)
        if resume_from_checkpoint is not None:
            deepspeed_load_checkpoint(engine, resume_from_checkpoint, load_module_strict=False)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared


@contextlib.contextmanager
def whole(checkpoint: Path, what: str) -> Iterator[None]:
    """CheckpointError: a file of it cannot be read, or does not fit the run."""
    try:
        yield
    except (*BROKEN, EOFError, IndexError, AttributeError) as error:
        is_told = isinstance(error, CheckpointError)
        told = str(error) if is_told else f"{checkpoint}: the {what} cannot be read: {first_line(error)}"
        raise CheckpointError(
            f"{told}; remove this folder (the run then goes on from the checkpoint before it), or start anew with "
            "--run.resume false"
        ) from error


def _targets(batch: dict[str, Any], key: str) -> Tensor:
    """Labels that a loss term will read: next tokens (b, t), or verdicts (b,)."""
    return batch[key][:, 1:] if batch[key].dim() == 2 else batch[key]


def trainer(
    recipe: Recipe,
    loaded: loading.Loaded,
    records: Sequence[Record],
    kind: Callable[..., SafeTrainer] | None = None,
    collator: Callable[[Augmentation | None], Any] | None = None,
    **options: Any,
) -> SafeTrainer:
    """The Trainer of a recipe's records; `options` are those of `kind`, or of `SafeTrainer`. A training that reads
    something else of a record has a collator of its own.

    ValueError: `data.feature_cache` names a folder, and the vision tower trains, or is of another family than LLaVA's.
    """
    augmentation = Augmentation.of(recipe, records, loaded.safe_llava.config.taxonomy)
    if collator is None:
        collate = _collator(recipe, loaded, records, augmentation, options["model"], options["args"])
    else:
        collate = collator(augmentation)
    made = (kind or SafeTrainer)(loaded=loaded, train_dataset=RecordDataset(records), data_collator=collate, **options)
    if augmentation is not None:
        made.add_callback(EveryEpoch(augmentation))
    return made


class EveryEpoch(TrainerCallback):
    """Tells an augmentation which epoch begins. Processes that load data are made after that."""

    def __init__(self, augmentation: Augmentation) -> None:
        self.augmentation = augmentation

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:
        updates = -(-len(given["train_dataloader"]) // args.gradient_accumulation_steps)
        self.augmentation.epoch = state.global_step // max(1, updates)


def _collator(
    recipe: Recipe,
    loaded: loading.Loaded,
    records: Sequence[Record],
    augmentation: Augmentation | None,
    model: Any,
    arguments: TrainingArguments,
) -> Collator | HeadCollator:
    if recipe.loss.lm or not isinstance(model, SafeLlava):
        if recipe.data.feature_cache:
            raise ValueError("data.feature_cache: only of LLaVA's own kind of tower is anything kept; leave it out")
        return Collator(loaded.processor, longest(recipe, loaded.safe_llava.config), augmentation)
    features = feature_cache.open_cache(recipe, loaded, records, arguments)
    return HeadCollator(loaded.processor, model.slots, model.reads_text, features, augmentation)
