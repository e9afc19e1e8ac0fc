"""The stage that learns a security tensor: three named loss terms, the bound of a visual one, and what is saved.

    malicious                cross-entropy of the refusal
    contrastive, benign      KL(untouched model ‖ model behind the tensor), or cross-entropy of the model's own answer

Each term is a mean over the answer tokens of its part in one update, so that the sum does not depend on how the update
is cut (`SafeTrainer`). What the untouched model says of the clean pairs is computed once, before the first update
(`safevlm.training.top_words`). A checkpoint holds the tensor alone; `final` is the last one, `best` the one with the
lowest loss on held-out pairs among those that were saved.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import TrainerCallback

from safevlm.config import Recipe, TensorSettings
from safevlm.data import atomic_write
from safevlm.data.collate import IGNORED, Collator, RecordDataset
from safevlm.data.records import PARTS, Record, RecordError
from safevlm.defenses import security_tensor
from safevlm.defenses.security_tensor import SecurityTensor
from safevlm.model import loading, losses
from safevlm.model.stored import read_tensors
from safevlm.training import top_words, updates
from safevlm.training.longest import longest
from safevlm.training.tensors import AnswerLogits, TensorLearner, check_pixels
from safevlm.training.top_words import TopWords
from safevlm.training.trainer import SafeTrainer, whole

MALICIOUS, *CLEAN = PARTS
BEST = "best"
HELD_OUT = "held_out_loss"
KEPT_BYTES = 1 << 30
"""Of what the untouched model says; of pairs beyond them it is asked whenever they come."""
FED = ("input_ids", "attention_mask", "pixel_values", "labels", "images_per_row")
"""Of a batch, to the model; LLaVA's has no `images_per_row`."""


@dataclass(frozen=True)
class PartCollator(Collator):
    """Adds `places`, and labels of its own for each part, (b, t), -100 in the rows of the others."""

    def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
        batch = super().__call__(records)
        others = {part: torch.tensor([record.part != part for record in records]) for part in PARTS}
        own = {part: batch["labels"].masked_fill(rows[:, None], IGNORED) for part, rows in others.items()}
        return batch | own | {"places": [record.place for record in records]}


class TensorTrainer(SafeTrainer):
    labels = {part: part for part in PARTS}

    def __init__(
        self, *, settings: TensorSettings, held_out: Sequence[Record], keeps_words: bool = False, **kwargs: Any
    ) -> None:
        """`keeps_words`: whether what the untouched model says is computed before the first update."""
        super().__init__(**kwargs)
        self.settings, self.held_out, self.keeps_words = settings, held_out, keeps_words
        self._kept: dict[str, TopWords] | None = None
        self.weights = asdict(settings.weights)
        self.image_std = self.loaded.processor.image_processor.image_std
        if settings.epsilon:
            self.add_callback(Bound(settings.epsilon / security_tensor.pixel_units(self.image_std)))

    def _terms(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[dict[str, losses.Term], AnswerLogits]:
        clean = torch.stack([(inputs[part] != IGNORED).any(1) for part in CLEAN]).any(0)
        compared = clean if self.settings.benign == "kl" else torch.zeros_like(clean)
        kept = self._known_words()  # in every process, whatever its batch holds
        pairs = zip(inputs["places"], compared.tolist(), strict=True)
        known = [kept.get(place) if is_compared else None for place, is_compared in pairs]
        asked = compared & torch.tensor([each is None for each in known], device=compared.device)
        answers = model(**_fed(inputs), untouched=asked)
        learned = inputs["labels"][:, 1:] != IGNORED
        targets = inputs["labels"][:, 1:][learned]
        terms = {}
        untouched = self._untouched(answers, known, asked, learned.sum(1).tolist()) if compared.any() else None
        of_compared = compared[:, None].expand_as(learned)[learned]
        for part in PARTS:
            mine = inputs[part][:, 1:][learned] != IGNORED
            if mine.any() and part in CLEAN and untouched is not None:
                terms[part] = untouched(answers.logits[mine], mine[of_compared])
            elif mine.any():
                terms[part] = losses.classification(answers.logits[mine], targets[mine])
        return terms, answers

    def _untouched(
        self, answers: AnswerLogits, known: Sequence[TopWords | None], asked: Tensor, sizes: Sequence[int]
    ) -> Callable[[Tensor, Tensor], losses.Term]:
        """(logits of some compared tokens, which of all compared tokens they are) → their KL.

        `sizes`: answer tokens of each row.
        """
        said = answers.untouched
        if said is not None and not self.settings.kl_words:
            return lambda logits, which: losses.divergence(logits, said[which])
        new: Iterator[TopWords] = iter(())
        if said is not None:
            own = [size for size, is_asked in zip(sizes, asked.tolist(), strict=True) if is_asked]
            new = top_words.top_words(said, self.settings.kl_words).split(own)
        rows = [next(new) if is_asked else words for words, is_asked in zip(known, asked.tolist(), strict=True)]
        words = top_words.joined([row.to(self.args.device) for row in rows if row is not None])
        return lambda logits, which: top_words.divergence(logits, words.of(which))

    def _known_words(self) -> dict[str, TopWords]:
        """Place of a pair → what the untouched model says of it. At the first call every process asks about a share."""
        if self._kept is None:
            self._kept = {}
            if self.keeps_words and self.settings.kl_words and self.settings.benign == "kl":
                for part in _gathered(self._words_of_my_share(), self.args.world_size):
                    self._kept |= part
        return self._kept

    def _words_of_my_share(self) -> dict[str, TopWords]:
        collate: Any = self.data_collator  # ours, of records
        records = cast(RecordDataset, self.train_dataset).records
        clean = [record for record in (*records, *self.held_out) if record.part in CLEAN]
        size, room = self.args.per_device_train_batch_size, KEPT_BYTES // self.args.world_size
        found: dict[str, TopWords] = {}
        learner = self.accelerator.unwrap_model(self.model)
        batches = range(self.args.process_index * size, len(clean), size * self.args.world_size)
        for start in tqdm(batches, "asking the untouched model", leave=False):
            batch = self._prepare_inputs(collate(clean[start : start + size]))
            with self.accelerator.autocast():
                said = learner.untouched(**_fed(batch))
            words = top_words.top_words(said, self.settings.kl_words).to("cpu")
            room -= words.bytes
            if room < 0:
                break
            sizes = (batch["labels"][:, 1:] != IGNORED).sum(1).tolist()
            found |= dict(zip(batch["places"], words.split(sizes), strict=True))
        return found

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The weighted sum of the terms on the held-out pairs; every process computes all of it."""
        collate: Any = self.data_collator  # ours, of records
        totals: defaultdict[str, float] = defaultdict(float)
        counts: Counter[str] = Counter()
        learner, size = self.accelerator.unwrap_model(self.model), self.args.per_device_train_batch_size
        for start in range(0, len(self.held_out), size):
            batch = self._prepare_inputs(collate(self.held_out[start : start + size]))
            for part, term in self._terms(learner, batch)[0].items():
                totals[part] += term.total.item()
                counts[part] += int(term.count)
        return sum(self.weights[part] * totals[part] / counts[part] for part in counts)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The tensor, recipe and run record."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.run_folder)
        folder.mkdir(parents=True, exist_ok=True)
        learner = self.accelerator.unwrap_model(self.model)
        learned = learner.security_tensor if self.settings.basis == "patches" else None
        file = folder / security_tensor.file_name(self.settings.kind)
        security_tensor.write(file, self._tensor(learner.values().detach().float().cpu()), learned)
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")

    def _tensor(self, values: Tensor) -> SecurityTensor:
        logged = {name: value for line in self.state.log_history for name, value in line.items()}
        about = {
            "base": str(self.loaded.path),
            "steps": self.state.global_step,
            "norm": values.norm().item(),
            "norm_inf": values.abs().max().item(),
            **{name: logged[name] for name in ("loss", HELD_OUT) if name in logged},
        }
        if self.settings.kind == "visual":
            change = security_tensor.pixel_change(values, self.image_std)
            about |= {"epsilon": self.settings.epsilon or None, "largest_pixel_change": change}
        return SecurityTensor(self.settings.kind, values, self.settings.position, about, self.loaded.base_fingerprints)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.held_out:
            before = [line[HELD_OUT] for line in self.state.log_history if HELD_OUT in line]
            self.log({HELD_OUT: round(self.held_out_loss(), 6)})
            if self.args.should_save and self.state.log_history[-1][HELD_OUT] < min(before, default=float("inf")):
                with atomic_write.atomic_folder(self.run_folder / BEST) as folder:
                    self.save_model(str(folder))
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        file = Path(resume_from_checkpoint) / security_tensor.file_name(self.settings.kind)
        with whole(file.parent, "tensor"), torch.no_grad():
            stored = read_tensors(file)
            learned = stored.get(security_tensor.LEARNED, stored[security_tensor.KEY])
            self.accelerator.unwrap_model(self.model).security_tensor.copy_(learned)


class Bound(TrainerCallback):
    """After every update, a visual tensor goes back to where no pixel is changed by more than epsilon."""

    def __init__(self, bound: Tensor) -> None:
        """`bound` (3, 1, 1), in preprocessed values."""
        self.bound = bound

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model: TensorLearner = kwargs["model"]
        with torch.no_grad():
            bound = self.bound.to(model.security_tensor)
            model.security_tensor.clamp_(-bound, bound)


def _fed(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: inputs[name] for name in FED if name in inputs}


def _gathered(mine: dict[str, TopWords], processes: int) -> list[dict[str, TopWords]]:
    """Every process's."""
    found = [mine] * processes
    if processes > 1:
        torch.distributed.all_gather_object(found, mine)
    return found


def count_parts(records: Sequence[Record]) -> dict[str, int]:
    """Pairs by part. RecordError: one without a part or an image, or a part without pairs."""
    for record in records:
        if not record.part or not record.images:
            what = "image" if record.part else f"`part` ({', '.join(PARTS)})"
            raise RecordError(f"{record.place}: no {what}; a security tensor learns from the pairs of `safevlm pair`")
    counts = Counter(record.part for record in records)
    if missing := [part for part in PARTS if not counts[part]]:
        raise RecordError(f"data.train: no pairs of the part {missing[0]!r}; a security tensor needs {list(PARTS)}")
    return {part: counts[part] for part in PARTS}


def split(records: Sequence[Record], held_out: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Pairs to train on, and so many of each part that are not."""
    rng, kept = random.Random(seed), set()
    for part in PARTS:
        mine = [record.place for record in records if record.part == part]
        if held_out >= len(mine):
            raise RecordError(f"tensor.held_out: {held_out} of {len(mine)} {part} pairs leave none to train on")
        kept.update(rng.sample(mine, held_out))
    return [r for r in records if r.place not in kept], [r for r in records if r.place in kept]


def trainer(recipe: Recipe, loaded: loading.Loaded, records: Sequence[Record], **kwargs: Any) -> TensorTrainer:
    """ValueError: a visual tensor, and a processor that cuts images."""
    check_pixels(loaded.safe_llava, loaded.processor, recipe.tensor)
    trained, held_out = split(records, recipe.tensor.held_out, recipe.run.seed)
    optim, processes = recipe.optim, kwargs["args"].world_size
    seen = updates.in_all(optim, len(trained), processes) * updates.effective_batch(optim, processes)
    return TensorTrainer(
        settings=recipe.tensor,
        held_out=held_out,
        keeps_words=seen > len(trained),
        loaded=loaded,
        train_dataset=RecordDataset(trained),
        data_collator=PartCollator(loaded.processor, longest(recipe, loaded.safe_llava.config)),
        **kwargs,
    )
